package sealdir

import "teekms/internal/durable"

// Owned is the file system that the directory is written with.
func Owned(dir string) durable.FS { return owned{dir: dir} }
