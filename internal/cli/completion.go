package cli

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ply/internal/cli/client"
	"ply/internal/version"
	"ply/internal/wire"
)

func (a *App) cmdCompletion() *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "Generate the completion script for a shell", Args: exactArgs(1),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Out, true)
			case "zsh":
				return root.GenZshCompletion(a.Out)
			case "fish":
				return root.GenFishCompletion(a.Out, true)
			}
			return &exitError{1, fmt.Sprintf("ply: completion: %q is not one of bash, zsh, fish", args[0])}
		},
	}
}

// completeArgs lets shells complete names of containers, images, volumes and networks where the usage asks for them.
func (a *App) completeArgs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.completeArgs(sub)
	}
	if c.ValidArgs != nil || c.HasSubCommands() {
		return
	}
	_, use, _ := strings.Cut(c.Use, " ")
	for _, kind := range []string{"CONTAINER", "IMAGE", "VOLUME", "NETWORK"} {
		if strings.Contains(use, kind) {
			c.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
				if len(args) > 0 && !strings.Contains(use, "["+kind+"...]") {
					return nil, cobra.ShellCompDirectiveDefault
				}
				return a.objects(cmd.Context(), kind), cobra.ShellCompDirectiveNoFileComp
			}
			return
		}
	}
}

// objects names what there is of a kind; an engine that does not run is not started for it.
func (a *App) objects(ctx context.Context, kind string) (names []string) {
	api, _, err := a.newClient()
	if err != nil {
		return nil
	}
	get := func(path string, out any) {
		_ = api.Do(ctx, client.Request{Path: path, Query: url.Values{"all": {"1"}}}, out) // completion has no place for errors
	}
	switch kind {
	case "CONTAINER":
		var list []wire.Container
		get("/containers/json", &list)
		for _, c := range list {
			for _, n := range c.Names {
				if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") { // not the names that links give
					names = append(names, n)
				}
			}
		}
	case "IMAGE":
		list, _ := listImages(ctx, api, nil, false)
		for _, im := range list {
			names = append(names, im.RepoTags...)
		}
	case "VOLUME":
		var out struct{ Volumes []wire.Volume }
		get("/volumes", &out)
		for _, v := range out.Volumes {
			names = append(names, v.Name)
		}
	case "NETWORK":
		var list []wire.Network
		get("/networks", &list)
		for _, n := range list {
			names = append(names, n.Name)
		}
	}
	return names
}

// cmdMan writes a manual page of every command into a directory; the Makefile calls it.
func (a *App) cmdMan() *cobra.Command {
	return &cobra.Command{
		Use: "man DIRECTORY", Short: "Write manual pages", Hidden: true, Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writeMan(cmd.Root(), args[0])
		},
	}
}

func writeMan(cmd *cobra.Command, dir string) error {
	if cmd.Hidden || cmd.Name() == "help" {
		return nil
	}
	page := manPage(cmd)
	name := filepath.Join(dir, dashed(cmd.CommandPath())+".1")
	if err := os.WriteFile(name, []byte(page), 0o644); err != nil {
		return err
	}
	for _, sub := range cmd.Commands() {
		if err := writeMan(sub, dir); err != nil {
			return err
		}
	}
	return nil
}

// sourceDate keeps pages reproducible: SOURCE_DATE_EPOCH when set.
func sourceDate() time.Time {
	var sec int64
	if _, err := fmt.Sscan(os.Getenv("SOURCE_DATE_EPOCH"), &sec); err == nil {
		return time.Unix(sec, 0).UTC()
	}
	if t, err := time.Parse(time.RFC3339, version.Get().Time); err == nil {
		return t
	}
	return time.Now().UTC()
}

func visibleFlags(fs *pflag.FlagSet) []*pflag.Flag {
	var out []*pflag.Flag
	fs.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			out = append(out, f)
		}
	})
	return out
}
