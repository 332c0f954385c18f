package wire

// Check is the auxiliary value of a message of POST /system/check. Exactly one field is set; Summary is in the last message.
type Check struct {
	Finding *CheckFinding `json:"finding,omitempty"`
	Summary *CheckSummary `json:"summary,omitempty"`
}

// CheckFinding is one object with which something is wrong.
type CheckFinding struct {
	Kind     string `json:"kind"`
	Object   string `json:"object"`
	Problem  string `json:"problem"`
	Heal     string `json:"heal"`               // the command that heals it, or what a user can do
	Repaired string `json:"repaired,omitempty"` // what a repair did; "" means that the problem remains
}

// CheckSummary is the result of an examination.
type CheckSummary struct {
	Full     bool           `json:"full"`
	Repair   bool           `json:"repair"`
	Checked  map[string]int `json:"checked"`  // number of objects by kind
	Findings int            `json:"findings"` // all of them
	Repaired int            `json:"repaired"` // of the findings
}
