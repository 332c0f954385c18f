package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/record"
)

// ReadConfig returns the configuration in a bundle and the version of the protocol that it asks for. It refuses a newer
// version than Version with errs.Precondition.
func ReadConfig(bundle string) (Config, int, error) {
	name := filepath.Join(bundle, ConfigFile)
	_, h, err := readFile[configCore](name)
	if err == nil && h.Version > Version {
		err = newer(errs.Precondition, name, h, "Install the ply-shim of the same release as plyd.")
	}
	if err != nil {
		return Config{}, 0, err
	}
	cfg, _, err := readFile[Config](name)
	return cfg, h.Version, err
}

// newer returns the error for a peer or file of a version that this build does not know.
func newer(class error, what string, h record.Header, hint string) error {
	err := record.Newer(what, h, Version)
	text := err.Error()
	if e, ok := errors.AsType[*errs.Error](err); ok {
		text = e.Msg // without its hint, which is about records
	}
	return errs.New(class, "%s", text).WithHint("%s", hint)
}

// ReadConfigCore returns the core of the configuration in a bundle, of whatever version: the fields ID, StateDir, Runtime
// and ExitPath. The others are set only when the version is not newer than Version.
func ReadConfigCore(bundle string) (Config, error) {
	name := filepath.Join(bundle, ConfigFile)
	core, h, err := readFile[configCore](name)
	if err != nil || h.Version > Version {
		return Config{ID: core.ID, StateDir: core.StateDir, Runtime: core.Runtime, ExitPath: core.ExitPath}, err
	}
	cfg, _, err := readFile[Config](name)
	return cfg, err
}

// configCore has the fields of Config that are the same in every version.
type configCore struct {
	ID       string `json:"id"`
	StateDir string `json:"stateDir"`
	Runtime  string `json:"runtime"`
	ExitPath string `json:"exitPath"`
}

// ReadExit reads an exit file, of whatever version: Exit is part of the core. It returns errs.NotFound when there is
// none, because no shim has seen the container end.
func ReadExit(path string) (ExitRecord, error) {
	e, _, err := readFile[ExitRecord](path)
	return e, err
}

// FindExit returns how a run ended: from the exit file, or from the copy in the bundle, which the shim writes when the disk
// of the exit file is full or broken. A file of another run does not count: after a power cut an exit file can be there
// again whose removal was not durable yet. A file that names no run counts; so does every file when run is "". It returns
// errs.NotFound when neither file is of this run.
func FindExit(run, exitPath, bundle string) (ExitRecord, error) {
	found := errs.New(errs.NotFound, "shim: no exit file of this run")
	for _, path := range []string{exitPath, filepath.Join(bundle, ExitFile)} {
		e, err := ReadExit(path)
		if err == nil && (run == "" || e.Run == "" || e.Run == run) {
			return e, nil
		}
		if err != nil && !errors.Is(err, errs.NotFound) {
			found = errs.New(errs.DataLoss, "shim: %w", err)
		}
	}
	return ExitRecord{}, found
}

// ReadIdentity reads PidFile or InitFile of a bundle, of whatever version: Identity is part of the core.
func ReadIdentity(path string) (Identity, error) {
	id, _, err := readFile[Identity](path)
	return id, err
}

// readFile reads a file of the protocol. A newer version is not an error here: callers compare the header's.
func readFile[T any](path string) (v T, h record.Header, err error) {
	data, err := durable.ReadFile(durable.OS, path, MaxFrame)
	if errors.Is(err, fs.ErrNotExist) {
		return v, h, errs.New(errs.NotFound, "shim: %w", err)
	}
	if err != nil {
		return v, h, fmt.Errorf("shim: %w", err)
	}
	return decode[T]("shim: "+path, data)
}

// decode decodes the content of a file of the protocol, of whatever version.
func decode[T any](what string, data []byte) (v T, h record.Header, err error) {
	h, err = record.ReadHeader(what, data, Version)
	if err != nil && !errors.Is(err, errs.Precondition) {
		return v, h, err
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return v, h, errs.New(errs.DataLoss, "%s: %w", what, err)
	}
	return v, h, nil
}
