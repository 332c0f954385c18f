package cli

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/wire"
)

// newCompletion returns the command completion.
func newCompletion(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "Generate the completion script for a shell", Args: command.ExactArgs(1),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				if _, err := io.WriteString(inv.Out, bashWords); err != nil {
					return err
				}
				return root.GenBashCompletionV2(inv.Out, true)
			case "zsh":
				return root.GenZshCompletion(inv.Out)
			case "fish":
				return root.GenFishCompletion(inv.Out, true)
			}
			return &command.ExitError{Code: 1, Text: fmt.Sprintf("ply: completion: %q is not one of bash, zsh, fish", args[0])}
		},
	}
}

// bashWords stands in for the function of the package bash-completion that the script calls, where that is not installed. It joins the words that bash has divided at
// = and at : and sets cur, prev, words and cword of the caller.
const bashWords = `if ! declare -F _get_comp_words_by_ref >/dev/null 2>&1; then
    _get_comp_words_by_ref()
    {
        local line=$COMP_LINE joined=() i at=-1 word space
        for ((i = 0; i < ${#COMP_WORDS[@]}; i++)); do
            word=${COMP_WORDS[i]}
            space=${line%%[![:space:]]*}
            line=${line#"$space"}
            line=${line#"$word"}
            if ((i > 0)) && [[ -z $space && ($word == [=:]* || ${COMP_WORDS[i-1]} == *[=:]) ]]; then
                joined[at]+=$word
            else
                joined[++at]=$word
            fi
            ((i == COMP_CWORD)) && cword=$at
        done
        words=("${joined[@]}")
        cur=${words[cword]}
        prev=
        ((cword > 0)) && prev=${words[cword-1]}
        return 0
    }
fi

`

// completeArgs lets shells complete the names of containers, images, volumes and networks, for the commands whose usage asks for one.
func completeArgs(c *cobra.Command, inv *command.Invocation) {
	for _, sub := range c.Commands() {
		completeArgs(sub, inv)
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
				return objects(cmd.Context(), inv, kind), cobra.ShellCompDirectiveNoFileComp
			}
			return
		}
	}
}

// objects returns the names of all objects of a kind. It does not start an engine that does not run.
func objects(ctx context.Context, inv *command.Invocation, kind string) (names []string) {
	api, err := inv.Client()
	if err != nil {
		return nil
	}
	get := func(path string, q url.Values, out any) {
		_ = api.Do(ctx, client.Request{Path: path, Query: q}, out) // completion cannot show errors
	}
	switch kind {
	case "CONTAINER":
		var list []wire.Container
		get("/containers/json", url.Values{"all": {"1"}}, &list)
		for _, c := range list {
			for _, n := range c.Names {
				if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") { // leave out names that links give
					names = append(names, n)
				}
			}
		}
	case "IMAGE":
		var list []wire.Image
		get("/images/json", nil, &list)
		for _, im := range list {
			names = append(names, im.RepoTags...)
		}
	case "VOLUME":
		var out wire.Volumes
		get("/volumes", nil, &out)
		for _, v := range out.Volumes {
			names = append(names, v.Name)
		}
	case "NETWORK":
		var list []wire.Network
		get("/networks", nil, &list)
		for _, n := range list {
			names = append(names, n.Name)
		}
	}
	return names
}
