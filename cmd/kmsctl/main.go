// Command kmsctl is the operator's and the auditor's client of a KMS: it
// verifies what a KMS says of itself, serves a software trust domain's
// collateral, and shows the whole main job as a demonstration.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"teekms/cmd/kmsctl/internal/cli"
)

// version is stamped by the build.
var version string

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// What is being waited for may not end with ctx; a second signal ends the process
	// at once.
	context.AfterFunc(ctx, stop)
	return cli.Run(ctx, cli.Environment{
		Args:    os.Args[1:],
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Getenv:  os.Getenv,
		Environ: os.Environ(),
		Now:     time.Now,
		Version: version,
	})
}
