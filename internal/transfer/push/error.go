package push

import (
	"errors"
	"net/http"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer/remote"
)

// pushError says what a registry's refusal means for a push, in docker's words. The class of the error stays the same.
func pushError(ref oci.Reference, err error) error {
	e, ok := errors.AsType[*remote.Error](err)
	if !ok {
		return err
	}
	switch e.Status {
	case http.StatusUnauthorized:
		return errs.New(errs.Unauthorized, "push access denied for %s, repository does not exist or may require 'ply login': %w", ref.FamiliarName(), e)
	case http.StatusForbidden:
		return errs.New(errs.Forbidden, "push access denied for %s: %w", ref.FamiliarName(), e)
	}
	return err
}
