"""Writes `orders.jsonl`: sentences with an item, a quantity and a city, each with its JSON.

    python make_orders.py > orders.jsonl

The 36 phrasings are written by hand; what is ordered is drawn. `phrasing` says which rows must
stay together in one split, so that the test shows phrasings that were never trained on.
"""

import json
import random

PHRASINGS = """
Please send {quantity} {item} to our office in {city}.
We need {quantity} {item} in {city} by Friday.
Our branch in {city} is out of {item}, could you deliver {quantity}?
Order for {city}: {quantity} {item}, as always.
Hello, I would like to order {quantity} {item}. The address is in {city}.
Can you bring {quantity} {item} to {city} next week?
{city} asks for {quantity} {item}.
Regarding order 7731: please change it to {quantity} {item}, delivery to {city}.
Kindly ship {quantity} {item} to the warehouse in {city}.
My team in {city} wants {item}, {quantity} of them.
Add {quantity} {item} to the next truck to {city}.
This is Lena from {city}. We are waiting for {quantity} {item}.
Last month you sent 5 by mistake; this time it is {quantity} {item} for {city}.
Is it possible to have {quantity} {item} in {city} before the 21st?
{quantity} {item}, please. To {city}, not to the head office.
The shop in {city} sold all of its {item} and orders {quantity} more.
For the fair in {city} we want to buy {quantity} {item}.
Put me down for {quantity} {item}; they go to {city}.
A customer in {city} ordered {quantity} {item} by phone.
Deliver to {city}. Item: {item}. Number: {quantity}.
We moved from room 14 to {city} and still need the {quantity} {item}.
Could {quantity} {item} reach {city} within 3 days?
I confirm the purchase of {quantity} {item} for our site in {city}.
Send {item} to {city}, {quantity} pieces, and the bill to me.
The school in {city} has asked whether {quantity} {item} are in stock.
As agreed on the phone, {quantity} {item} will be picked up in {city}.
Nobody in {city} got the {item} yet: it was {quantity} that we paid for.
Please reserve {quantity} {item}, someone from {city} will collect them.
New request from {city} (priority 2): {item}, quantity {quantity}.
To whom it may concern: {city} requires {quantity} {item}.
We have 2 left, so please send another {quantity} {item} to {city}.
In {city} the stock of {item} is low. Refill with {quantity}.
How soon can {quantity} {item} be in {city}?
I ordered {quantity} {item} for {city} and want to know when they come.
Just {quantity} {item} this time, for the new team in {city}.
Forward {quantity} {item} to {city} and keep the rest here.
""".strip().splitlines()

ITEMS = [
    "desk lamps",
    "blue pens",
    "paper cups",
    "office chairs",
    "phone chargers",
    "wool blankets",
    "garden hoses",
    "coffee mugs",
    "door locks",
    "printer cartridges",
    "water filters",
    "winter tyres",
    "name badges",
    "bicycle pumps",
    "glass jars",
    "tool boxes",
    "rain jackets",
    "wall clocks",
    "candle holders",
    "hand towels",
    "wooden spoons",
    "steel bolts",
    "travel bags",
    "light bulbs",
    "reading glasses",
    "picture frames",
]

CITIES = [
    "Lyon",
    "Porto",
    "Graz",
    "Bergen",
    "Leeds",
    "Gdansk",
    "Turin",
    "Malmo",
    "Ghent",
    "Seville",
    "Cork",
    "Brno",
    "Basel",
    "Izmir",
    "Tampere",
    "Split",
    "Varna",
    "Patras",
    "Aarhus",
    "Utrecht",
    "Nantes",
    "Dresden",
    "Krakow",
    "Bologna",
]

ROWS_PER_PHRASING = 8


def main() -> None:
    """Print one row per line."""
    random.seed(0)
    rows = []
    for number, phrasing in enumerate(PHRASINGS):
        for _ in range(ROWS_PER_PHRASING):
            order = {
                "item": random.choice(ITEMS),
                "quantity": random.randint(2, 250),
                "city": random.choice(CITIES),
            }
            message = phrasing.format(**order)
            rows.append({"message": message, "order": json.dumps(order), "phrasing": number})
    random.shuffle(rows)
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
