package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ply/internal/cli/config"
	"ply/internal/version"
)

// signalError is the cause of a context that a signal ended.
type signalError struct{ sig os.Signal }

func (e *signalError) Error() string { return e.sig.String() }

func (e *signalError) number() int {
	if n, ok := e.sig.(syscall.Signal); ok {
		return int(n)
	}
	return 1
}

// Main runs the command line on the process's streams and gives its exit code.
func Main(args []string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	ch := make(chan os.Signal, 3)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	go func() {
		for n := 0; ; n++ {
			s := <-ch
			cancel(&signalError{s})
			if n == 2 {
				os.Exit(1) // asked three times
			}
		}
	}()
	return NewApp().Run(ctx, args)
}

// Run executes one command line (without the program's name) and gives the exit code.
func (a *App) Run(ctx context.Context, args []string) int {
	root := a.Root()
	args = a.rewrite(args)
	root.SetArgs(args)
	root.SetContext(ctx)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if hint := a.forgottenRun(root, args); hint != "" {
		err = &exitError{125, hint}
	}
	code, text := outcome(err)
	if text != "" {
		fmt.Fprintln(a.Err, text)
	}
	return code
}

// Root builds the command tree.
func (a *App) Root() *cobra.Command {
	root := &cobra.Command{
		Use:              "ply [OPTIONS] COMMAND",
		Short:            "A container image engine: docker's words, one file a layer",
		SilenceErrors:    true,
		SilenceUsage:     true,
		TraverseChildren: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.global.version && len(args) == 0 {
				fmt.Fprintf(a.Out, "ply version %s, build %s\n", version.Version, shortCommit())
				return nil
			}
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args)
		},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			switch a.global.logLevel {
			case "debug":
				a.global.debug = true
			case "info", "warn", "warning", "error", "fatal":
			default:
				return &exitError{1, "unable to parse logging level: " + a.global.logLevel}
			}
			return nil
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetHelpCommand(&cobra.Command{
		Use: "help [command]", Short: "Help about the command", Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			sub, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return &exitError{1, fmt.Sprintf("unknown help topic: %s", strings.Join(args, " "))}
			}
			return sub.Help()
		},
	})
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { writeHelp(a.Out, cmd, a.helpWidth()) })
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{cmd: cmd, text: err.Error(), see: "Run", code: 125}
	})
	a.globalFlags(root.Flags())
	a.addCommands(root)
	helpFlags(root)
	return root
}

// helpFlags gives every command --help; -h too, where it is not taken. It is listed only where -h is something else.
func helpFlags(c *cobra.Command) {
	if c.Flags().ShorthandLookup("h") == nil {
		c.Flags().BoolP("help", "h", false, "Print usage")
		c.Flags().Lookup("help").Hidden = true
	} else {
		c.Flags().Bool("help", false, "Print usage")
	}
	for _, sub := range c.Commands() {
		helpFlags(sub)
	}
}

func (a *App) helpWidth() int {
	if w, _ := a.OutTerm.Size(); w > 20 {
		return w
	}
	return 80
}

func (a *App) globalFlags(f *pflag.FlagSet) {
	g := &a.global
	f.SortFlags = true
	f.SetInterspersed(false)
	f.StringVar(&g.configDir, "config", config.Dir(), "Location of client config files")
	f.StringVarP(&g.context, "context", "c", "", "Name of the context to use (ply has none: an error that says so)")
	f.BoolVarP(&g.debug, "debug", "D", false, "Enable debug mode: show every request to the engine")
	f.VarP(&hostList{&g.hosts}, "host", "H", "Daemon socket to connect to")
	f.StringVarP(&g.logLevel, "log-level", "l", "info", `Set the logging level ("debug" shows every request; "info", "warn", "error", "fatal" do not)`)
	f.BoolVar(&g.tls, "tls", false, "Use TLS; implied by --tlsverify")
	f.StringVar(&g.caFile, "tlscacert", "", "Trust certs signed only by this CA")
	f.StringVar(&g.certFile, "tlscert", "", "Path to TLS certificate file")
	f.StringVar(&g.keyFle, "tlskey", "", "Path to TLS key file")
	f.BoolVar(&g.tlsVerify, "tlsverify", false, "Use TLS and verify the remote")
	f.BoolVarP(&g.version, "version", "v", false, "Print version information and quit")
}

// hostList is -H.
type hostList struct{ to *[]string }

func (h *hostList) Set(s string) error { *h.to = append(*h.to, s); return nil }
func (h *hostList) String() string     { return "" }
func (h *hostList) Type() string       { return "list" }

func unknownCommand(cmd *cobra.Command, args []string) error {
	if err := dashes(cmd, args); err != nil {
		return err
	}
	text := "ply: unknown command: " + cmd.CommandPath() + " " + args[0]
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		text += "\n\nDid you mean '" + cmd.CommandPath() + " " + s[0] + "'?"
	}
	if cmd.HasParent() {
		text += "\n\nUsage:  " + useLine(cmd)
	}
	return &exitError{1, text + "\n\nRun '" + cmd.CommandPath() + " --help' for more information"}
}

// rewrite turns the old single-dash -tree of `images` into --tree, with the old warning.
func (a *App) rewrite(args []string) []string {
	at := slices.Index(args, "-tree")
	if at < 0 {
		return args
	}
	words := 0
	for _, w := range args[:at] {
		if w == "images" || w == "image" || words == 1 && (w == "ls" || w == "list") {
			words++
			if w == "images" {
				words++
			}
		} else if w == "run" || w == "create" || w == "exec" || w == "--" {
			return args // the container's own words
		}
	}
	if words < 2 {
		return args
	}
	fmt.Fprintln(a.Err, "Warning: '-tree' is deprecated, it will be removed soon. See usage.")
	out := slices.Clone(args)
	out[at] = "--tree"
	return out
}

// forgottenRun recognises `ply -d -p 5000:5000 IMAGE`, typed without run, and gives the corrected line.
func (a *App) forgottenRun(root *cobra.Command, args []string) string {
	n := globalPrefix(args)
	rest := args[n:]
	if len(rest) == 0 || !strings.HasPrefix(rest[0], "-") || namesCommand(root, args) {
		return ""
	}
	probe := newRunFlags()
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	fs.SetInterspersed(false)
	probe.add(fs, true)
	if err := fs.Parse(rest); err != nil {
		return ""
	}
	if fs.NArg() == 0 {
		if len(rest) == 1 && rest[0] == "-d" {
			return "unknown shorthand flag: 'd' in -d\n\nThe engine is a program of its own: run `plyd`. To run a container in the background: `ply run -d IMAGE`."
		}
		return ""
	}
	line := "ply"
	for _, w := range args[:n] {
		line += " " + shellQuote(w)
	}
	line += " run"
	for _, w := range rest {
		line += " " + shellQuote(w)
	}
	return "ply: the command is missing before '" + rest[0] + "'; did you mean `" + line + "`?"
}

// globalPrefix counts the leading words that can only be global flags: those whose name run does not know.
func globalPrefix(args []string) int {
	n := 0
	for n < len(args) {
		name, _, joined := strings.Cut(args[n], "=")
		switch name {
		case "--debug", "-D", "--tls", "--tlsverify":
			n++
		case "--config", "--context", "--host", "-H", "--log-level", "--tlscacert", "--tlscert", "--tlskey":
			if n++; !joined {
				n++
			}
		default:
			return n
		}
	}
	return min(n, len(args))
}

// namesCommand reports whether a command follows the global flags.
func namesCommand(root *cobra.Command, args []string) bool {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.SetInterspersed(false)
	(&App{}).globalFlags(fs)
	if err := fs.Parse(args); err != nil {
		return false
	}
	c, _, err := root.Find(fs.Args())
	return err == nil && c != root
}

func shellQuote(s string) string {
	if s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=+.,:/@%^", r))
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
