package metadata

import (
	"fmt"

	"ply/internal/errs"
)

func (e *MissingError) Error() string {
	switch {
	case len(e.Blobs) > 0:
		return fmt.Sprintf("manifest refers to blob %s, which is not in the repository", e.Blobs[0])
	case len(e.Manifests) > 0:
		return fmt.Sprintf("manifest refers to manifest %s, which is not in the repository", e.Manifests[0])
	}
	return "manifest refers to something that is not in the repository"
}

// Is reports whether target is errs.NotFound.
func (e *MissingError) Is(target error) bool { return target == errs.NotFound }

// Empty reports whether nothing is missing.
func (e *MissingError) Empty() bool { return len(e.Blobs) == 0 && len(e.Manifests) == 0 }
