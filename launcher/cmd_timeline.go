package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"launcher/internal/errs"
	"launcher/wire"
)

const timelineLong = `Write what workers did, as a Chrome trace: a row per worker, a bar per task. Open it in a
browser at chrome://tracing or in Perfetto. Each node keeps its newest tasks; what it keeps
no longer is counted in "dropped". Clocks of nodes are put right by their measured offsets.`

func (a *app) cmdTimeline() *cobra.Command {
	var file string
	var job uint32
	var limit int
	c := &cobra.Command{
		Use:   "timeline",
		Short: "what workers did, as a Chrome trace",
		Long:  timelineLong,
		Args:  argCount(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			by, lost, err := ask[wire.Timeline](c.Context(), a, wire.QueryTimeline, "", wire.TimelineQuery{Job: wire.JobID(job), Limit: limit})
			if err != nil {
				return err
			}
			offsets, err := a.clocks(c.Context())
			if err != nil {
				return err
			}
			trace, events, dropped := chromeTrace(by, offsets)
			if file == "" || file == "-" {
				if _, err := a.out.Write(trace); err != nil {
					return errs.Wrap(errs.Exhausted, err, "writing the timeline")
				}
			} else if err := os.WriteFile(file, trace, 0o644); err != nil {
				return errs.Wrap(errs.Permission, err, "cannot write the timeline")
			} else if a.json {
				a.printJSON(doc{"file": file, "events": events, "dropped": dropped, "unreached": mapAll(lost, func(u unreached) unreached { return u })})
				return nil
			}
			a.noteUnreached(lost)
			if dropped > 0 {
				a.note("%s, %d older ones are kept no longer", plural(events, "task"), dropped)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&file, "output", "o", "", "write it to `FILE` (default: standard output)")
	c.Flags().Uint32Var(&job, "job", 0, "only what this job did")
	c.Flags().IntVar(&limit, "limit", 20000, "at most so many tasks of each node, the newest")
	return c
}

// clocks are how far the nodes' clocks are ahead of the head's.
func (a *app) clocks(ctx context.Context) (map[wire.NodeID]int64, error) {
	nodes, err := request[[]wire.NodeInfo](ctx, a, wire.MsgNodes, wire.NodesRequest{})
	if err != nil {
		return nil, err
	}
	out := map[wire.NodeID]int64{}
	for _, n := range nodes {
		out[n.ID] = n.Clock
	}
	return out, nil
}

// traceEvent is an entry of a Chrome trace; times are microseconds.
type traceEvent struct {
	Name  string         `json:"name"`
	Phase string         `json:"ph"`
	Time  float64        `json:"ts"`
	Dur   float64        `json:"dur,omitempty"`
	PID   int            `json:"pid"` // the node
	TID   int            `json:"tid"` // the worker
	Color string         `json:"cname,omitempty"`
	Args  map[string]any `json:"args,omitempty"`
}

// chromeTrace turns what the nodes kept into a trace.
func chromeTrace(by map[wire.NodeID]wire.Timeline, offsets map[wire.NodeID]int64) (trace []byte, tasks int, dropped int64) {
	out := []traceEvent{}
	for i, n := range slices.Sorted(maps.Keys(by)) {
		out = append(out, traceEvent{Name: "process_name", Phase: "M", PID: i + 1, Args: map[string]any{"name": "node " + string(n)}})
		dropped += by[n].Dropped
		seen := map[int]bool{}
		for _, e := range by[n].Events {
			if !seen[e.Worker] {
				seen[e.Worker] = true
				out = append(out, traceEvent{Name: "thread_name", Phase: "M", PID: i + 1, TID: e.Worker, Args: map[string]any{"name": fmt.Sprintf("worker %d", e.Worker)}})
			}
			t := traceEvent{Name: e.Name, Phase: "X", Time: float64(e.Start-offsets[n]) / 1e3, Dur: float64(e.End-e.Start) / 1e3, PID: i + 1, TID: e.Worker,
				Args: map[string]any{"task": e.ID, "job": e.Job, "attempt": e.Attempt, "state": e.State}}
			if e.Submitted > 0 {
				t.Args["waited_us"] = float64(e.Start-e.Submitted) / 1e3
			}
			if e.State != wire.TaskDone {
				t.Color = "terrible"
			}
			out = append(out, t)
			tasks++
		}
	}
	slices.SortStableFunc(out, func(x, y traceEvent) int { return cmp.Compare(x.Time, y.Time) })
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(map[string]any{"traceEvents": out, "displayTimeUnit": "ms", "metadata": map[string]any{"version": jsonVersion, "dropped": dropped}}) // of plain values
	return b.Bytes(), tasks, dropped
}
