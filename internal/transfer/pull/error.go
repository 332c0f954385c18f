package pull

import (
	"errors"
	"net/http"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer/remote"
)

// pullError says what a registry's refusal means for a pull, in docker's words. The class stays.
func pullError(ref oci.Reference, err error) error {
	e, ok := errors.AsType[*remote.Error](err)
	if !ok {
		return err
	}
	switch {
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden || e.Has("DENIED") || e.Has("UNAUTHORIZED"):
		var class error = errs.Forbidden
		if e.Status == http.StatusUnauthorized {
			class = errs.Unauthorized
		}
		return errs.New(class, "pull access denied for %s, repository does not exist or may require 'ply login': %w", ref.FamiliarName(), e)
	case e.Has("NAME_UNKNOWN"):
		return errs.New(errs.NotFound, "repository %s not found: %w", ref.FamiliarName(), e)
	case e.Has("BLOB_UNKNOWN"):
		return errs.New(errs.NotFound, "%s: the registry has the manifest but not all that it names: %w", ref.Familiar(), e)
	case e.Status == http.StatusNotFound:
		return errs.New(errs.NotFound, "manifest for %s not found: %w", ref.Familiar(), e)
	}
	return err
}

// manifestError is pullError for an answer that may be no manifest: that error knows nothing of the name.
func manifestError(ref oci.Reference, err error) error {
	if _, ok := errors.AsType[*remote.Error](err); !ok && errors.Is(err, errs.Invalid) {
		return errs.New(errs.Invalid, "%s: %w", ref.Familiar(), err)
	}
	return pullError(ref, err)
}
