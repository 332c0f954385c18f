package wire

// ImportDocker is the auxiliary value of a message of POST /system/import-docker. Exactly one field is set; Summary is in the last message.
type ImportDocker struct {
	Object  *ImportedObject `json:"object,omitempty"`
	Summary *ImportSummary  `json:"summary,omitempty"`
}

// ImportedObject is what became of one object of a docker engine.
type ImportedObject struct {
	Kind  string `json:"kind"` // image, network, volume, container or other
	Name  string `json:"name"`
	ID    string `json:"id,omitempty"`
	As    string `json:"as,omitempty"` // the name here, if it is another one
	State string `json:"state"`        // imported, planned, present, conflict, left or failed
	Note  string `json:"note,omitempty"`
	Minor bool   `json:"minor,omitempty"` // its absence is no loss
}

// ImportSummary is the result of an import.
type ImportSummary struct {
	DryRun   bool           `json:"dryRun"`
	States   map[string]int `json:"states"`   // number of objects by state, without the minor ones
	Complete bool           `json:"complete"` // everything is here
}
