//go:build !linux

package supervisor

import (
	"context"
	"io"

	"launcher/internal/errs"
)

func unbuilt() error {
	return errs.New(errs.Unbuilt, "nodes and heads: only on Linux").Hint("clusters of ssh and slurm pools can keep their head on a Linux machine")
}

// GuardMain is not there on this system.
func GuardMain(ctx context.Context, stdin io.Reader) error { return unbuilt() }

// Main is not there on this system.
func Main(ctx context.Context) error { return unbuilt() }

// HeadMain is not there on this system.
func HeadMain(ctx context.Context, dir string) error { return unbuilt() }
