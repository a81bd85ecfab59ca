// Package record keeps what a cluster leaves behind: the output of its jobs, the table
// of each job's tasks and trials, and its nodes. The head writes it (Writer); anybody
// may read it, also with nothing up (Open).
//
//	jobs/ID/output-N.log   the job's output, compressed, as segments of up to 32 MiB
//	jobs/ID/table.json     the job, its tasks and its trials
//	nodes.json             the nodes the cluster had
//
// Output comes from nodes as stretches of their spools (wire.LogBatch), several nodes'
// interleaved; what the record has of each is part of it, so that a stretch that is sent
// twice counts once and a gap is refused.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"launcher/internal/disk"
	"launcher/internal/errs"
	"launcher/wire"
)

// Table is jobs/ID/table.json.
type Table struct {
	Version   int // 1
	Job       wire.JobInfo
	Tasks     []wire.TaskInfo  // all, or with Truncated those that did not end well
	Truncated bool             `json:",omitempty"`
	Trials    *wire.TrialTable `json:",omitempty"`
	Dropped   string           `json:",omitempty"` // why output is not there any more
}

const tableVersion = 1

// JobDir is the directory of a job's record in the cluster's directory dir.
func JobDir(dir string, job wire.JobID) string {
	return filepath.Join(dir, "jobs", strconv.FormatUint(uint64(job), 10))
}

// Jobs lists the jobs that dir has a record of, oldest first.
func listJobs(dir string) ([]wire.JobID, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "jobs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.Wrap(errs.Unavailable, err, "cannot read the record")
	}
	var ids []wire.JobID
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 32); err == nil && n > 0 && e.Name() == strconv.FormatUint(n, 10) {
			ids = append(ids, wire.JobID(n))
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func segmentPath(jobDir string, n int) string {
	return filepath.Join(jobDir, fmt.Sprintf("output-%d.log", n))
}

// listSegments gives the numbers of a job's segments, in order.
func listSegments(jobDir string) ([]int, error) {
	names, err := filepath.Glob(filepath.Join(jobDir, "output-*.log"))
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "cannot read the record")
	}
	var ns []int
	for _, name := range names {
		var n int
		if _, err := fmt.Sscanf(filepath.Base(name), "output-%d.log", &n); err == nil && segmentPath(jobDir, n) == name {
			ns = append(ns, n)
		}
	}
	slices.Sort(ns)
	return ns, nil
}

// readTable reads the table of a job.
func readTable(dir string, job wire.JobID) (*Table, error) {
	path := filepath.Join(JobDir(dir, job), "table.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "no job %d in the record %s", job, dir)
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "cannot read the record")
	}
	var t Table
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "%s", path)
	}
	if t.Version > tableVersion {
		return nil, errs.New(errs.Version, "%s has version %d, this launcher reads up to %d", path, t.Version, tableVersion)
	}
	return &t, nil
}

// writeJSON replaces path by v.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "cannot write %s", path)
	}
	return WriteFile(path, append(b, '\n'))
}

// WriteFile replaces path by a file with content b, 0600, all at once and safely.
func WriteFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp")
	if err != nil {
		return diskError(err, "cannot write %s", path)
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return diskError(err, "cannot write %s", path)
	}
	_ = disk.Sync(filepath.Dir(path))
	return nil
}
