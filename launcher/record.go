package main

import (
	"context"
	"time"

	"launcher/head/record"
	"launcher/internal/errs"
	"launcher/wire"
)

// downRecord is the record of a cluster that is down, as a reader.
type downRecord struct {
	*record.Reader
	dir string
}

func openRecord(dir string) (reader, error) {
	r, err := record.Open(dir)
	if err != nil && !errs.Is(err, errs.NotFound) {
		return nil, err
	}
	return downRecord{r, dir}, nil // a cluster that never had a job has no record yet
}

func (r downRecord) Jobs() ([]wire.JobInfo, error) {
	if r.Reader == nil {
		return nil, nil
	}
	return r.Reader.Jobs()
}

// Info is what `status` can say with nothing up.
func (r downRecord) Info() (wire.ClusterInfo, error) {
	hc, err := readHeadConfig(r.dir)
	if err != nil {
		return wire.ClusterInfo{}, err
	}
	i := wire.ClusterInfo{Name: hc.Name, SpecPath: hc.SpecPath, SpecText: hc.SpecText, Jobs: map[string]int{}}
	jobs, err := r.Jobs()
	if err != nil {
		return i, err
	}
	for _, j := range jobs {
		i.Jobs[j.State.String()]++
	}
	for _, p := range hc.Pools {
		i.Pools = append(i.Pools, wire.PoolInfo{Name: p.Name, Backend: p.Backend, Min: p.Min, Max: p.Max})
	}
	return i, nil
}

func (r downRecord) none(job wire.JobID) error {
	return errs.New(errs.NotFound, "the record has no job %d", job).Hint("`launcher jobs` lists its jobs")
}

func (r downRecord) Tasks(q wire.TasksRequest) ([]wire.TaskInfo, error) {
	if r.Reader == nil {
		return nil, r.none(q.Job)
	}
	return r.Reader.Tasks(q)
}

func (r downRecord) Trials(job wire.JobID) (wire.TrialTable, error) {
	if r.Reader == nil {
		return wire.TrialTable{}, r.none(job)
	}
	return r.Reader.Trials(job)
}

func (r downRecord) Logs(q wire.LogsRequest, emit func(wire.LogChunk) error) error {
	if r.Reader == nil {
		return r.none(q.Job)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	return r.Reader.Logs(ctx, q, emit)
}

func (downRecord) Close() error { return nil }
