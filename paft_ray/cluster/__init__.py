"""The Ray cluster: starting or joining it, access tokens, resources, jobs, the control actor.

session.py       starting or joining Ray, and the environment of its processes
surroundings.py  modules that workers find, folder of Ray's sockets
own_node.py      the processes of a node that was started here
access.py        checks that a cluster requires a token and takes ours
resources.py     how large workers are, and how many have room
control.py       the actors through which a driver and its workers communicate
remote.py        errors of remote processes, actors on the driver's node
jobs.py          a verb as a Ray job
"""
