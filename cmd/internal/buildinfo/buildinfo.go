// Package buildinfo tells which version of the product a binary is.
package buildinfo

import (
	"runtime"
	"runtime/debug"
)

// Version returns what `make build` stamped; without a stamp, what the Go
// toolchain recorded: the module's version, or the commit it was built from.
func Version(stamped string) string {
	if stamped != "" {
		return stamped
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	settings := make(map[string]string, len(info.Settings))
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	if revision == "" {
		return "devel"
	}
	if settings["vcs.modified"] == "true" {
		revision += "-dirty"
	}
	return revision
}

// Line is the text of --version: name, version, toolchain, platform.
func Line(name, stamped string) string {
	return name + " " + Version(stamped) + " (" + runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")"
}
