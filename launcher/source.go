package main

import (
	"context"
	"errors"
	"io"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// source answers questions about jobs: the head of a cluster that is up, or the record
// of one that is down.
type source struct {
	target target
	c      *client // nil: the cluster is down
	rec    reader  // nil: it is up
}

// reader reads a cluster's record.
type reader interface {
	Info() (wire.ClusterInfo, error)
	Jobs() ([]wire.JobInfo, error)
	Tasks(wire.TasksRequest) ([]wire.TaskInfo, error)
	Trials(wire.JobID) (wire.TrialTable, error)
	Logs(req wire.LogsRequest, emit func(wire.LogChunk) error) error
	Close() error
}

// source finds the cluster the command means, up or down.
func (a *app) source(ctx context.Context) (*source, error) {
	t, err := a.pick(true)
	if err != nil {
		return nil, err
	}
	if asleep(t.dir) {
		_ = a.awake(ctx, t) // the front says what is wrong
	}
	if t.up {
		c, err := dial(ctx, t)
		if err == nil {
			return &source{target: t, c: c}, nil
		}
		if !errs.Is(err, errs.NotFound) || t.inside {
			return nil, err
		}
	}
	r, err := openRecord(t.dir)
	if err != nil {
		return nil, errs.Wrap(errs.Unknown, err, "the record of cluster %s", t.name)
	}
	if !a.json {
		a.note("launcher: cluster %s is down; this is its record", t.name)
	}
	return &source{target: t, rec: r}, nil
}

func (s *source) up() bool { return s.rec == nil }

// take gives the connection away; the source does not close it any more.
func (s *source) take() *client {
	c := s.c
	s.c = nil
	return c
}

func (s *source) Close() {
	if s.c != nil {
		s.c.Close()
	}
	if s.rec != nil {
		_ = s.rec.Close()
	}
}

// spec is the path of the cluster's spec, for hints.
func (s *source) spec() string {
	if hc, err := readHeadConfig(s.target.dir); err == nil {
		return hc.SpecPath
	}
	return "SPEC"
}

func (s *source) info(ctx context.Context) (i wire.ClusterInfo, err error) {
	if s.rec != nil {
		return s.rec.Info()
	}
	err = s.c.call(ctx, wire.MsgInfo, wire.InfoRequest{}, &i)
	return i, err
}

func (s *source) jobs(ctx context.Context, all bool) (jobs []wire.JobInfo, err error) {
	if s.rec == nil {
		err = s.c.call(ctx, wire.MsgJobs, wire.JobsRequest{All: all}, &jobs)
		return jobs, err
	}
	jobs, err = s.rec.Jobs()
	if !all {
		jobs = slices.DeleteFunc(jobs, func(j wire.JobInfo) bool { return j.State.Terminal() })
	}
	return jobs, err
}

// job is one job as it is now.
func (s *source) job(ctx context.Context, id wire.JobID) (j wire.JobInfo, err error) {
	if s.rec != nil {
		jobs, err := s.rec.Jobs()
		if err != nil {
			return j, err
		}
		i := slices.IndexFunc(jobs, func(j wire.JobInfo) bool { return j.ID == id })
		if i < 0 {
			return j, errs.New(errs.NotFound, "the record has no job %d", id).Hint("`launcher jobs` lists its jobs")
		}
		return jobs[i], nil
	}
	ctx, cancel := context.WithTimeout(ctx, callBound)
	defer cancel()
	st, err := s.c.open(ctx, wire.MsgWatch, wire.Watch{Job: id})
	if err != nil {
		return j, err
	}
	defer st.Close()
	if err = answer(st, &j); errors.Is(err, io.EOF) {
		err = errs.New(errs.Unavailable, "the connection to the head was lost")
	}
	return j, err
}

func (s *source) tasks(ctx context.Context, req wire.TasksRequest) (tasks []wire.TaskInfo, err error) {
	if s.rec != nil {
		return s.rec.Tasks(req)
	}
	err = s.c.call(ctx, wire.MsgTasks, req, &tasks)
	return tasks, err
}

func (s *source) trials(ctx context.Context, id wire.JobID) (t wire.TrialTable, err error) {
	if s.rec != nil {
		return s.rec.Trials(id)
	}
	err = s.c.call(ctx, wire.MsgTrials, wire.TrialsRequest{Job: id}, &t)
	return t, err
}

// logs passes on what output there is now.
func (s *source) logs(ctx context.Context, req wire.LogsRequest, emit func(wire.LogChunk) error) error {
	if s.rec != nil {
		return s.rec.Logs(req, emit)
	}
	st, err := s.c.open(ctx, wire.MsgLogs, req)
	if err != nil {
		return err
	}
	defer st.Close()
	for {
		var ch wire.LogChunk
		switch err := answer(st, &ch); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := emit(ch); err != nil {
			return errs.Wrap(errs.Unknown, err, "cannot write the output")
		}
	}
}
