package provenance

import "time"

// The predicate of version 0.2.
type (
	predicate02 struct {
		Builder     builder      `json:"builder"`
		BuildType   string       `json:"buildType"`
		Materials   []Material   `json:"materials,omitempty"`
		Invocation  invocation   `json:"invocation"`
		BuildConfig *buildConfig `json:"buildConfig,omitempty"`
		Metadata    metadata02   `json:"metadata"`
	}
	invocation struct {
		ConfigSource configSource02 `json:"configSource"`
		Parameters   parameters     `json:"parameters"`
		Environment  environment    `json:"environment"`
	}
	configSource02 struct {
		URI        string            `json:"uri,omitempty"`
		Digest     map[string]string `json:"digest,omitempty"`
		EntryPoint string            `json:"entryPoint,omitempty"`
	}
	environment struct {
		Platform string `json:"platform"`
	}
	metadata02 struct {
		InvocationID string         `json:"buildInvocationID,omitempty"`
		StartedOn    *time.Time     `json:"buildStartedOn,omitempty"`
		FinishedOn   *time.Time     `json:"buildFinishedOn,omitempty"`
		Completeness completeness02 `json:"completeness"`
		Reproducible bool           `json:"reproducible"`
		BuildKit     buildKit       `json:"https://mobyproject.org/buildkit@v1#metadata"`
		Hermetic     bool           `json:"https://mobyproject.org/buildkit@v1#hermetic,omitempty"`
	}
	completeness02 struct {
		Parameters  bool `json:"parameters"`
		Environment bool `json:"environment"`
		Materials   bool `json:"materials"`
	}
)

// v02 converts the predicate to version 0.2.
func (p *predicate) v02() *predicate02 {
	d, m := &p.BuildDefinition, &p.RunDetails.Metadata
	return &predicate02{
		Builder: p.RunDetails.Builder, BuildType: buildType02, Materials: d.ResolvedDependencies,
		Invocation: invocation{
			ConfigSource: configSource02{d.ExternalParameters.ConfigSource.URI, d.ExternalParameters.ConfigSource.Digest, d.ExternalParameters.ConfigSource.Path},
			Parameters:   d.ExternalParameters.Request,
			Environment:  environment{d.InternalParameters.BuilderPlatform},
		},
		BuildConfig: d.InternalParameters.BuildConfig,
		Metadata: metadata02{
			InvocationID: m.InvocationID, StartedOn: m.StartedOn, FinishedOn: m.FinishedOn, Reproducible: m.Reproducible, Hermetic: m.Hermetic, BuildKit: m.BuildKit,
			Completeness: completeness02{Parameters: m.Completeness.Request, Environment: true, Materials: m.Completeness.ResolvedDependencies},
		},
	}
}
