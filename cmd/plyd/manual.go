package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"ply/internal/config"
	"ply/internal/manual"
)

// writeManual writes the pages plyd(8) and ply-daemon.json(5) into directories below dir. `make install` calls it.
func writeManual(dir string, flags *pflag.FlagSet) error {
	for name, page := range map[string]string{"man8/plyd.8": engineManual(flags), "man5/ply-daemon.json.5": settingsManual()} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func engineManual(flags *pflag.FlagSet) string {
	p := manual.New("plyd", 8, "the engine of ply: images, layers and containers behind the Docker Engine API")
	p.Section("SYNOPSIS")
	p.Bold("plyd [OPTIONS]")
	p.Section("DESCRIPTION")
	p.Text("plyd serves the Docker Engine API on unix:///run/ply.sock, to ply and to every client of docker. It runs as root. Each container has a ply-shim of its own, " +
		"and goes on when plyd ends, is killed or is replaced by another release; the next plyd takes it over.")
	p.Text("Every option but those about plyd itself is also a key of " + defaultConfigFile + ". A setting in both places is an error.")
	p.Section("OPTIONS")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if t := f.Value.Type(); t != "bool" {
			name += " " + t
		}
		text := f.Usage
		if f.DefValue != "" && f.DefValue != "false" {
			text += " (default " + f.DefValue + ")"
		}
		p.Item(name, text)
	})
	p.Section("SIGNALS")
	p.Item("SIGHUP", "Read the settings again. Those that ply-daemon.json(5) calls live take effect.")
	p.Item("SIGTERM, SIGINT", "End. Containers run on with live-restore, which is the default; otherwise, and when systemd shuts the machine down, they are stopped first.")
	p.Section("FILES")
	p.Item(defaultConfigFile, "The settings.")
	p.Item(config.Default().DataRoot, "Images, containers and volumes.")
	p.Item(config.Default().ExecRoot, "What lasts until the next boot.")
	p.Section("SEE ALSO")
	p.Refer("ply", 1, "")
	p.Refer("ply-daemon.json", 5, "")
	return p.String()
}

func settingsManual() string {
	p := manual.New("ply-daemon.json", 5, "the settings of plyd")
	p.Section("SYNOPSIS")
	p.Bold(defaultConfigFile)
	p.Section("DESCRIPTION")
	p.Text("The file holds one JSON object. Its keys have the names and meanings of dockerd's, so that a daemon.json of docker can be copied. plyd --validate checks it. An unknown key is a warning; " +
		"a value of a wrong type, and a key that is also given as an option, are errors. A size is a number of bytes, or a string such as \"64M\".")
	p.Text("Live settings take effect when plyd gets SIGHUP, all others when it starts.")
	p.Section("SETTINGS")
	unused := false
	for _, k := range config.Keys() {
		if k.Not != "" && !unused {
			unused = true
			p.Section("SETTINGS WITHOUT EFFECT")
			p.Text("plyd knows these keys of dockerd. Those that guard the machine are errors when they are set; the others are warnings.")
		}
		if k.Not != "" {
			p.Item(k.Name, k.Not)
			continue
		}
		text := k.Use + " (" + k.Type
		if k.Live {
			text += ", live"
		}
		if k.Flag != "" {
			text += "; option --" + k.Flag
		}
		p.Item(k.Name, text+")")
	}
	p.Section("SEE ALSO")
	p.Refer("plyd", 8, "")
	return p.String()
}
