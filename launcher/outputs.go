package main

import (
	"context"
	"strings"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// awaitOutputs has what a job's tasks wrote on other machines be here when a command says
// that the job has ended. Whether we wait for it or not, the head sees to that.
func (a *app) awaitOutputs(ctx context.Context, t target, j *wire.JobInfo) error {
	if j.Outputs == nil || !t.up {
		return nil
	}
	var o wire.Outputs
	for began := time.Now(); ; {
		c, err := dial(ctx, t)
		if err == nil {
			err = c.call(ctx, wire.MsgOutputs, wire.OutputsRequest{Job: j.ID}, &o)
			c.Close()
		}
		if err == nil {
			break
		}
		// A head that is being started again is there in a moment.
		if ctx.Err() != nil || !errs.Retryable(err) && !errs.Is(err, errs.NotFound) || time.Since(began) > reconnectBound {
			return errs.Wrap(errs.Unknown, err, "the outputs of job %d", j.ID)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	j.Outputs = &o
	a.noteOutputs(*j)
	return nil
}

// noteOutputs says what came.
func (a *app) noteOutputs(j wire.JobInfo) {
	if o := j.Outputs; o != nil && o.Files > 0 && !a.json {
		a.note("launcher: outputs of job %d: %s (%s) came to %s", j.ID, plural(o.Files, "file"), wire.Bytes(o.Bytes), j.Dir)
	}
}

// outputsErr is what is missing of a job's outputs; nil = nothing.
func outputsErr(j *wire.JobInfo) error {
	switch o := j.Outputs; {
	case o == nil:
	case len(o.Failed) > 0:
		return errs.New(errs.Lost, "job %d ended, but its outputs are not all here: %s", j.ID, strings.Join(o.Failed, "; ")).
			Hint("`launcher cp NODE:PATH .` fetches what is still on a node")
	case o.Waiting > 0:
		return errs.New(errs.Unavailable, "job %d ended, but the outputs of %s wait: %s", j.ID, plural(o.Waiting, "task"), o.Why).
			Hint("the head has them in %s and tries again every 30 s and when its broker comes; `launcher wait %d` says how it went", o.At, j.ID)
	}
	return nil
}
