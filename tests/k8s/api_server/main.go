// Kubernetes' own API server for custom resources, alone: what `kube-apiserver` runs to check RayJobs
// and RayClusters, without the core kinds, authentication and admission. It serves test_api_server.py.
//
// On Debian (unstable, in a chroot of debootstrap's on older ones), with etcd on its usual port:
//
//	apt-get install golang-go etcd-server golang-k8s-apiextensions-apiserver-dev
//	GO111MODULE=off GOPATH=/usr/share/gocode CGO_ENABLED=0 go build -o apiserver main.go
//	etcd &
//	./apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=127.0.0.1 --secure-port=6443 \
//	    --kubeconfig=kubeconfig --cert-dir=certificates --enable-priority-and-fairness=false
//
// where kubeconfig names https://127.0.0.1:6443, insecure-skip-tls-verify and any token.
package main

import (
	"os"

	"github.com/spf13/pflag"
	"k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	genericapiserver "k8s.io/apiserver/pkg/server"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	settings := options.NewCustomResourceDefinitionsServerOptions(os.Stdout, os.Stderr)
	flags := pflag.NewFlagSet("apiserver", pflag.ExitOnError)
	settings.AddFlags(flags)
	check(flags.Parse(os.Args[1:]))
	check(settings.ServerRunOptions.ComponentGlobalsRegistry.Set())
	settings.RecommendedOptions.Authentication = nil
	settings.RecommendedOptions.Authorization = nil
	settings.RecommendedOptions.Admission = nil
	check(settings.Complete())
	check(settings.Validate())
	config, err := settings.Config()
	check(err)
	config.GenericConfig.Authentication.Authenticator = anonymous.NewAuthenticator(nil)
	config.GenericConfig.Authorization.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()
	server, err := config.Complete().New(genericapiserver.NewEmptyDelegate())
	check(err)
	check(server.GenericAPIServer.PrepareRun().RunWithContext(genericapiserver.SetupSignalContext()))
}
