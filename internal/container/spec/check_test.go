package spec

import (
	"errors"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Every refusal has docker's words and the class Invalid.
func TestCheckValuesRefuses(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	umask, timeout := uint32(0o1000), -2
	for words, s := range map[string]Spec{
		"Minimum memory limit allowed is 6MB":                                                  {Resources: Resources{Memory: -1}},
		"You should always set the Memory limit when using Memoryswap limit, see usage":        {Resources: Resources{MemorySwap: 8 << 20}},
		"Minimum memoryswap limit should be larger than memory limit, see usage":               {Resources: Resources{Memory: 16 << 20, MemorySwap: 8 << 20}},
		"MemorySwap: -2 is neither bytes nor -1":                                               {Resources: Resources{MemorySwap: -2}},
		"Minimum memory reservation allowed is 6MB":                                            {Resources: Resources{MemoryReservation: 1}},
		"Minimum memory limit can not be less than memory reservation limit, see usage":        {Resources: Resources{Memory: 8 << 20, MemoryReservation: 16 << 20}},
		"Invalid value: 101, valid memory swappiness range is 0-100":                           {Resources: Resources{MemorySwappiness: n(101)}},
		"Conflicting options: Nano CPUs and CPU Period cannot both be set":                     {Resources: Resources{NanoCPUs: 1, CPUPeriod: 1000}},
		"Conflicting options: Nano CPUs and CPU Quota cannot both be set":                      {Resources: Resources{NanoCPUs: 1, CPUQuota: 1000}},
		"NanoCpus: -1 is negative":                                                             {Resources: Resources{NanoCPUs: -1}},
		"CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)": {Resources: Resources{CPUPeriod: 999}},
		"CPU cfs quota can not be less than 1ms (i.e. 1000)":                                   {Resources: Resources{CPUQuota: 999}},
		"invalid CPU shares (-1)":                                                              {Resources: Resources{CPUShares: -1}},
		"Range of blkio weight is from 10 to 1000":                                             {Resources: Resources{BlkioWeight: 9}},
		"Invalid value 1-x for cpuset cpus":                                                    {Resources: Resources{CpusetCpus: "1-x"}},
		"Invalid value 2-1 for cpuset mems":                                                    {Resources: Resources{CpusetMems: "2-1"}},
		`BlkioDeviceWriteIOps: bad format for device path: "dev/x"`:                            {Resources: Resources{DeviceWriteIOps: []DeviceRate{{"dev/x", 1}}}},
		"BlkioWeightDevice: invalid weight for device /dev/x":                                  {Resources: Resources{DeviceWeights: []DeviceWeight{{"/dev/x", 1001}}}},
		"Invalid value 1001, range for oom score adj is [-1000, 1000]":                         {OomScoreAdj: 1001},
		"SHM size can not be less than 0":                                                      {ShmSize: -1},
		"invalid Umask 01000: must be from 0 to 0777":                                          {Umask: &umask},
		"StopTimeout: -2 is neither seconds nor -1":                                            {StopTimeout: &timeout},
		"invalid ulimit type: bogus":                                                           {Ulimits: []Ulimit{{Name: "bogus"}}},
		"ulimit soft limit must be less than or equal to hard limit: -1 > 5":                   {Ulimits: []Ulimit{{"nofile", -1, 5}}},
		"invalid restart policy: unknown policy 'sometimes'":                                   {RestartPolicy: RestartPolicy{Name: "sometimes"}},
		"invalid restart policy: maximum retry count cannot be negative":                       {RestartPolicy: RestartPolicy{Name: "on-failure", MaxRetries: -1}},
		"can't create 'AutoRemove' container with restart policy":                              {AutoRemove: true, RestartPolicy: RestartPolicy{Name: "always"}},
		`Unknown type "MOON" in Healthcheck: want NONE, CMD or CMD-SHELL`:                      {Healthcheck: &oci.Healthcheck{Test: []string{"MOON"}}},
		"Retries in Healthcheck cannot be negative":                                            {Healthcheck: &oci.Healthcheck{Retries: -1}},
		"Timeout in Healthcheck cannot be less than 1ms":                                       {Healthcheck: &oci.Healthcheck{Timeout: 5}},
		"the working directory 'rel' is invalid, it needs to be an absolute path":              {WorkingDir: "rel"},
		"invalid environment variable: =x":                                                     {Env: []string{"=x"}},
		"invalid signal: SIGNOPE":                                                              {StopSignal: "SIGNOPE"},
	} {
		if err := s.CheckValues(); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("CheckValues = %v, want Invalid with %q", err, words)
		}
	}
}

func TestCheckAccepts(t *testing.T) {
	n := int64(-1)
	s := Spec{WorkingDir: "/a/../b", StopSignal: "RTMIN+3", Ulimits: []Ulimit{{"nofile", 5, -1}, {"core", -1, -1}}, RestartPolicy: RestartPolicy{Name: "on-failure", MaxRetries: 3},
		Healthcheck: &oci.Healthcheck{Test: []string{""}}, Resources: Resources{Memory: 6 << 20, MemorySwap: -1, CPUQuota: -1, PidsLimit: &n, CpusetCpus: "0-2,4", KernelMemory: 1}}
	warnings, err := s.Check()
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "Kernel memory") {
		t.Errorf("Check = %q, %v, want one warning about kernel memory", warnings, err)
	}
	if s.WorkingDir != "/b" || s.Resources.KernelMemory != 0 {
		t.Errorf("after Check the working directory is %q, kernel memory %d", s.WorkingDir, s.Resources.KernelMemory)
	}
	if err := s.Resources.CheckCPUs(5); err != nil {
		t.Error(err)
	}
	if err := s.Resources.CheckCPUs(4); err == nil || !strings.Contains(err.Error(), "Requested CPUs are not available - requested 0-2,4, available: 0-3") {
		t.Errorf("CheckCPUs(4) = %v", err)
	}
	r := Resources{NanoCPUs: 3e9}
	if err := r.CheckCPUs(2); err == nil || !strings.Contains(err.Error(), "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available") {
		t.Errorf("CheckCPUs(2) = %v", err)
	}
}
