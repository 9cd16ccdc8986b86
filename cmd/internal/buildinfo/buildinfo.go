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
	if revision := vcs(info); revision != "" {
		return revision
	}
	return "devel"
}

// Revision returns the commit that `make build` stamped, else the one that the
// Go toolchain recorded, else "unknown".
func Revision(stamped string) string {
	if stamped != "" {
		return stamped
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		if revision := vcs(info); revision != "" {
			return revision
		}
	}
	return "unknown"
}

// vcs is the commit a binary was built from, empty where it was not recorded.
func vcs(info *debug.BuildInfo) string {
	settings := make(map[string]string, len(info.Settings))
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	if revision != "" && settings["vcs.modified"] == "true" {
		revision += "-dirty"
	}
	return revision
}

// Line is the text of --version: name, version, toolchain, platform.
func Line(name, stamped string) string {
	return name + " " + Version(stamped) + " (" + runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")"
}
