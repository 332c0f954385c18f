package buildkit

import (
	"context"
	"encoding/json"
	"strings"
	"sync"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	"google.golang.org/grpc"

	"ply/internal/build"
	"ply/internal/errs"
	"ply/internal/oci"
)

var _ build.Policy = (*policy)(nil)

// maxPolicyAnswer is the most bytes of an answer of a client's policy.
const maxPolicyAnswer = 1 << 20

// policy asks the client of a build, which evaluates the policies that came with the context.
type policy struct {
	sessions *Sessions
	id       string // of the session

	mu      sync.Mutex
	allowed map[string]bool // what the client was asked about
}

// Allow implements build.Policy. An answer that is neither yes nor no is an error: the client asks for more about the source, or wants another one.
func (p *policy) Allow(ctx context.Context, address string, attrs map[string]string, platform oci.Platform) error {
	key, err := json.Marshal([]any{address, attrs, platform})
	if err != nil {
		return errs.New(errs.Internal, "source policy: %w", err)
	}
	p.mu.Lock()
	known := p.allowed[string(key)]
	p.mu.Unlock()
	if known {
		return nil
	}
	s, err := p.sessions.get(ctx, p.id)
	if err != nil {
		return err
	}
	if !s.offers(policysession.PolicyVerifier_CheckPolicy_FullMethodName) {
		return errs.New(errs.Invalid, "the client offers no source policy")
	}
	ask := &policysession.CheckPolicyRequest{Source: &gwpb.ResolveSourceMetaResponse{Source: &pb.SourceOp{Identifier: address, Attrs: attrs}}}
	if platform.OS != "" {
		ask.Platform = &pb.Platform{OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant}
	}
	asked, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := policysession.NewPolicyVerifierClient(s.cc).CheckPolicy(asked, ask, grpc.MaxCallRecvMsgSize(maxPolicyAnswer))
	if err != nil {
		return named("source policy of "+clip(address), streamError(err))
	}
	switch d := resp.GetDecision(); {
	case d == nil:
		return errs.New(errs.Unimplemented, "source %s: the policy asks for metadata of the source, which is not supported", clip(address))
	case d.Action == spb.PolicyAction_CONVERT:
		return errs.New(errs.Unimplemented, "source %s: the policy replaces the source, which is not supported", clip(address))
	case d.Action != spb.PolicyAction_ALLOW:
		var why strings.Builder
		for _, m := range d.DenyMessages {
			why.WriteString(": " + clip(m.GetMessage()))
		}
		return errs.New(errs.Forbidden, "source %s not allowed by policy: action %s%s", clip(address), d.Action, clip(why.String()))
	}
	p.mu.Lock()
	p.allowed[string(key)] = true
	p.mu.Unlock()
	return nil
}
