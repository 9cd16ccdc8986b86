package sealdir

import "teekms/internal/durable"

// Owned is the file system that the directory is written with.
func Owned(dir string) durable.FS { return &owned{dir: dir} }

// Through has the directory written through another file system.
func (d *Directory) Through(fsys durable.FS) { d.fs = fsys }
