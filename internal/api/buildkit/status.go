package buildkit

import (
	"context"
	"errors"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"ply/internal/build"
	"ply/internal/build/dockerfile"
	"ply/internal/errs"
)

// statusError turns an error into one that BuildKit's clients understand: with a code, and with the lines of the Dockerfile that it is about.
func statusError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err // what the client returned itself
	}
	out := err
	var step *build.StepError
	if errors.As(err, &step) {
		out = errors.New(step.Err.Error())
		if step.Code != 0 {
			out = &gwpb.ExitError{ExitCode: uint32(step.Code), Err: out}
		}
	} else {
		out = errors.New(err.Error())
	}
	out = grpcerrors.WrapCode(out, codeOf(err))
	var e *dockerfile.Error
	if errors.As(err, &e) && len(e.File.Data) > 0 {
		src := &errdefs.Source{Info: &pb.SourceInfo{Filename: e.File.Name, Data: e.File.Data, Language: "Dockerfile"}}
		for _, r := range e.Ranges {
			src.Ranges = append(src.Ranges, &pb.Range{
				Start: &pb.Position{Line: int32(r.Start), Character: int32(r.StartChar)}, End: &pb.Position{Line: int32(r.End), Character: int32(r.EndChar)},
			})
		}
		out = errdefs.WithSource(out, src)
	}
	return grpcerrors.ToGRPC(ctx, out)
}

// codeOf returns the code of a class of errors. Clients print every other code than Unknown, so what the user did wrong has none.
func codeOf(err error) codes.Code {
	if step := (*build.StepError)(nil); errors.As(err, &step) && step.Code != 0 {
		return codes.Unknown
	}
	if df := (*dockerfile.Error)(nil); errors.As(err, &df) && errors.Is(err, errs.Invalid) {
		return codes.Unknown
	}
	for _, c := range []struct {
		class error
		code  codes.Code
	}{
		{context.Canceled, codes.Canceled}, {context.DeadlineExceeded, codes.DeadlineExceeded}, {errs.NotFound, codes.NotFound},
		{errs.Exists, codes.AlreadyExists}, {errs.Conflict, codes.FailedPrecondition},
		{errs.Precondition, codes.FailedPrecondition}, {errs.Unauthorized, codes.Unauthenticated}, {errs.Forbidden, codes.PermissionDenied},
		{errs.Unavailable, codes.Unavailable}, {errs.Exhausted, codes.ResourceExhausted}, {errs.Unimplemented, codes.Unimplemented},
		{errs.DataLoss, codes.DataLoss},
	} {
		if errors.Is(err, c.class) {
			return c.code
		}
	}
	return codes.Unknown
}
