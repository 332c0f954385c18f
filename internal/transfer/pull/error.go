package pull

import (
	"errors"
	"net/http"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer/remote"
)

// pullError words the answer of a registry as docker does for a pull. The class of the error stays the same.
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

// kept adds to the error of a download that it need not begin again.
func kept(err error) error {
	if e, ok := errors.AsType[*errs.Error](err); ok && e.Hint != "" {
		return err
	}
	return errs.New(errs.Unavailable, "%w", err).WithHint("What arrived is kept: the next pull goes on from there.")
}

// manifestError is pullError for fetching a manifest. It adds the name to an error about bytes that are not a manifest.
func manifestError(ref oci.Reference, err error) error {
	if _, ok := errors.AsType[*remote.Error](err); !ok && errors.Is(err, errs.Invalid) {
		return errs.New(errs.Invalid, "%s: %w", ref.Familiar(), err)
	}
	return pullError(ref, err)
}
