package command

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ply/internal/cli/config"
)

// Globals are the flags that stand before the command.
type Globals struct {
	Debug    bool
	LogLevel string
	Version  bool

	configDir                 string
	context                   string
	hosts                     []string
	tls, tlsVerify            bool
	caFile, certFile, keyFile string
}

// Define defines the flags on f.
func (g *Globals) Define(f *pflag.FlagSet) {
	f.SortFlags = true
	f.SetInterspersed(false)
	f.StringVar(&g.configDir, "config", config.Dir(), "Location of client config files")
	f.StringVarP(&g.context, "context", "c", "", `Name of the context to use to connect to the daemon (overrides DOCKER_HOST env var and default context set with "ply context use")`)
	f.BoolVarP(&g.Debug, "debug", "D", false, "Enable debug mode: show every request to the engine")
	f.VarP(&hostList{&g.hosts}, "host", "H", "Daemon socket to connect to")
	f.StringVarP(&g.LogLevel, "log-level", "l", "info", `Set the logging level ("debug" shows every request; "info", "warn", "error", "fatal" do not)`)
	f.BoolVar(&g.tls, "tls", false, "Use TLS; implied by --tlsverify")
	f.StringVar(&g.caFile, "tlscacert", "", "Trust certs signed only by this CA")
	f.StringVar(&g.certFile, "tlscert", "", "Path to TLS certificate file")
	f.StringVar(&g.keyFile, "tlskey", "", "Path to TLS key file")
	f.BoolVar(&g.tlsVerify, "tlsverify", false, "Use TLS and verify the remote")
	f.BoolVarP(&g.Version, "version", "v", false, "Print version information and quit")
}

// hostList is the flag -H. It collects values, so that a second one can be refused.
type hostList struct{ to *[]string }

func (h *hostList) Set(s string) error { *h.to = append(*h.to, s); return nil }
func (h *hostList) String() string     { return "" }
func (h *hostList) Type() string       { return "list" }

// NoInterspersed stops flag parsing at the first argument of c: what follows belongs to the container's command.
func NoInterspersed(c *cobra.Command) {
	c.Flags().SetInterspersed(false)
	Annotate(c, "interspersed", "no")
}

func interspersed(c *cobra.Command) bool { return c.Annotations["interspersed"] != "no" }

// Annotate sets an annotation of c.
func Annotate(c *cobra.Command, key, value string) {
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	c.Annotations[key] = value
}
