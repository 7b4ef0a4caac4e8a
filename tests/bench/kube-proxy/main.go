// Command kube-proxy is Kubernetes' own, as released, for the bench of Services. Kubernetes cannot be built by name alone
// (`go install`), because it pins the modules of its own tree by replacements, which only a main module may have: so this
// module repeats them.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
)

func main() {
	os.Exit(cli.Run(app.NewProxyCommand()))
}
