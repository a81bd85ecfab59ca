package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"launcher/collectives/bench"
	"launcher/internal/errs"
	"launcher/python"
	"launcher/wire"
)

// benchCollectives measures all-reduce between ranks of this machine.
func benchCollectives(ctx context.Context, e *benchEnv, emit func(benchRow)) error {
	if e.up { // an idle cluster takes little, but nothing is less
		if err := e.down(ctx); err != nil {
			return err
		}
	}
	o := bench.Options{Rank: []string{e.binary, "bench-rank"}, Python: e.python,
		Log: func(format string, args ...any) { e.a.screen.progress(fmt.Sprintf(format, args...)) }}
	if e.python == "" {
		e.a.note("launcher: no Python with numpy was found: no figures of Python ranks; --python names one")
	} else {
		var err error
		if o.PythonPath, err = python.Extract(filepath.Join(e.home, "sdk")); err != nil {
			return err
		}
	}
	rows, err := bench.Run(ctx, o)
	for _, r := range rows {
		what := fmt.Sprintf("%s of %s", r.What, wire.Bytes(int64(r.Bytes)))
		if r.Buffers != "" {
			what += fmt.Sprintf(", %s %s buffers", r.Language, r.Buffers)
		}
		emit(benchRow{Bench: "collectives", What: what, Value: r.Rate, Unit: "GB/s", Limit: r.Limit, Of: r.LimitIs, Ratio: r.Ratio, Target: r.Target})
		if r.Wrong != "" {
			err = errs.New(errs.Internal, "%s gave a wrong result: %s", what, r.Wrong)
		}
	}
	return err
}

// numpyPython finds an interpreter with numpy: the one named, the virtual environment
// that is active or lies here, or the first on PATH.
func numpyPython(ctx context.Context, named string) (string, error) {
	candidates := []string{named}
	if named == "" {
		candidates = []string{filepath.Join(os.Getenv("VIRTUAL_ENV"), "bin/python"), ".venv/bin/python", "python3"}
	}
	for _, c := range candidates {
		path, err := exec.LookPath(c)
		if err != nil {
			continue
		}
		if path, err = filepath.Abs(path); err == nil && exec.CommandContext(ctx, path, "-c", "import numpy").Run() == nil {
			return path, nil
		}
	}
	if named != "" {
		return "", errs.New(errs.NotFound, "--python %s: it does not run, or has no numpy", named)
	}
	return "", nil
}
