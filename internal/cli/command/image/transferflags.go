package image

import (
	"github.com/spf13/pflag"

	"ply/internal/cli/progress"
	"ply/internal/errs"
)

// transferFlags are the flags of pull and push.
type transferFlags struct {
	all, quiet, noVerify bool
	platform, progress   string
}

// add defines the flags on fs. The help of three of them differs: all, verify and platform.
func (f *transferFlags) add(fs *pflag.FlagSet, all, verify, platform string) {
	fs.BoolVarP(&f.all, "all-tags", "a", false, all)
	fs.BoolVar(&f.noVerify, "disable-content-trust", true, verify)
	fs.StringVar(&f.platform, "platform", "", platform)
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Suppress verbose output")
	progress.Flag(fs, &f.progress)
}

// check refuses what ply does not support.
func (f *transferFlags) check() error {
	if !f.noVerify {
		return errs.New(errs.Unimplemented, "--disable-content-trust=false: image verification with Notary is not supported")
	}
	return nil
}
