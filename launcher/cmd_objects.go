package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"launcher/internal/errs"
	"launcher/wire"
)

const objectsLong = `List the objects of programs: where their bytes are and why they are alive.

  STATE      pending     its task has not made it yet
             inline      small, kept by the agent
             resident    in the node's shared memory
             spilled     on the node's disk
             on NODE     not here: its bytes are there ("elsewhere", with nodes, in --json)
             lost, error
  ALIVE FOR  what refers to it: programs and workers (pid), tasks that have it as an
             argument, objects that contain it, other nodes, readers of its bytes (pin)

The first line of each node says how much of its object memory is used for what.`

func (a *app) cmdObjects() *cobra.Command {
	var job uint32
	var limit int
	var node string
	c := &cobra.Command{
		Use:   "objects [ID]",
		Short: "objects in memory and on disk, and why they are alive",
		Long:  objectsLong,
		Args:  argCount(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			q := wire.SDKObjectQuery{Job: wire.JobID(job), Limit: limit}
			if limit == 0 {
				q.Limit = 1 << 20
			}
			if len(args) == 1 {
				if !isSDKID(args[0]) {
					return errs.New(errs.Invalid, "%q is no id of an object", args[0]).Hint("ids have 32 hex digits; `launcher objects` lists them")
				}
				q.ID = args[0]
			}
			by, lost, err := ask[wire.SDKObjects](c.Context(), a, wire.QueryObjects, node, q)
			if err != nil {
				return err
			}
			if a.json {
				a.printJSON(objectsDoc(by, lost))
				return nil
			}
			a.printObjects(by, q.ID)
			a.noteUnreached(lost)
			return nil
		},
	}
	c.Flags().Uint32Var(&job, "job", 0, "only those of this job")
	c.Flags().StringVar(&node, "node", "", "only those of this node")
	c.Flags().IntVar(&limit, "limit", 50, "list at most so many of each node, the largest first; 0 = all")
	return c
}

func (a *app) printObjects(by map[wire.NodeID]wire.SDKObjects, id string) {
	rows := [][]string{{"OBJECT", "NODE", "STATE", "SIZE", "AGE", "MADE BY", "ALIVE FOR"}}
	for _, n := range slices.Sorted(maps.Keys(by)) {
		o := by[n]
		if id == "" {
			fmt.Fprintf(a.out, "%s: %s, %s in memory (%s read in place), %s on disk, %s inline; segments take %s of %s\n", n, plural(int(o.Count), "object"),
				wire.Bytes(o.Resident), wire.Bytes(o.Pinned), wire.Bytes(o.Spilled), wire.Bytes(o.Inline), wire.Bytes(o.Segments), wire.Bytes(o.Limit))
		}
		for _, x := range o.Objects {
			state := x.State
			if x.Copy {
				state += " (copy)"
			}
			switch {
			case len(x.Nodes) == 0:
			case x.State == wire.ObjectElsewhere:
				state = "on " + joinNodes(x.Nodes)
			default:
				state += ", also " + joinNodes(x.Nodes)
			}
			rows = append(rows, []string{x.ID, string(n), state, wire.Bytes(x.Size), ageText(x.Age), cut(x.Made, 24), cut(holdersText(x.Holders), 100)})
		}
		if left := o.Count - int64(len(o.Objects)); left > 0 && id == "" {
			a.note("%s: the %d largest of %d; --limit 0 lists all", n, len(o.Objects), o.Count)
		}
	}
	if len(rows) > 1 {
		a.table(rows)
	} else if id != "" {
		a.note("no node has the object %s", id)
	}
}

func ageText(ns int64) string {
	if ns == 0 {
		return ""
	}
	return shortDuration(time.Duration(ns))
}

func joinNodes(n []wire.NodeID) string {
	s := make([]string, len(n))
	for i, v := range n {
		s[i] = string(v)
	}
	return strings.Join(s, " ")
}

func holdersText(hs []wire.Holder) string {
	var parts []string
	for _, h := range hs {
		s := h.What
		if h.Who != "" {
			s += " " + h.Who
		}
		if h.Count > 1 {
			s += fmt.Sprintf(" ×%d", h.Count)
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ", ")
}

func objectsDoc(by map[wire.NodeID]wire.SDKObjects, lost []unreached) doc {
	var nodes []doc
	for _, n := range slices.Sorted(maps.Keys(by)) {
		o := by[n]
		nodes = append(nodes, doc{"node": n, "count": o.Count, "resident": o.Resident, "spilled": o.Spilled, "inline": o.Inline,
			"segments": o.Segments, "limit": o.Limit, "pinned": o.Pinned, "objects": mapAll(o.Objects, toJSONObject)})
	}
	return doc{"nodes": mapAll(nodes, func(d doc) doc { return d }), "unreached": mapAll(lost, func(u unreached) unreached { return u })}
}

type jsonObject struct {
	ID      string        `json:"id"`
	Job     uint32        `json:"job"`
	State   string        `json:"state"`
	Size    int64         `json:"size"`
	Copy    bool          `json:"copy"`
	Nodes   []wire.NodeID `json:"nodes"` // others that have it
	Made    string        `json:"made_by"`
	Age     float64       `json:"age"` // seconds
	Holders []wire.Holder `json:"holders"`
}

func toJSONObject(o wire.SDKObject) jsonObject {
	return jsonObject{o.ID, uint32(o.Job), o.State, o.Size, o.Copy, mapAll(o.Nodes, func(n wire.NodeID) wire.NodeID { return n }), o.Made,
		time.Duration(o.Age).Seconds(), mapAll(o.Holders, func(h wire.Holder) wire.Holder { return h })}
}

type jsonSDKTask struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Job       uint32   `json:"job"`
	State     string   `json:"state"`
	Attempt   uint32   `json:"attempt"`
	Node      string   `json:"node,omitempty"`
	Worker    int      `json:"worker,omitempty"`
	Parent    string   `json:"parent,omitempty"`
	WaitsFor  []string `json:"waits_for"`
	Why       string   `json:"why,omitempty"`
	Submitted *string  `json:"submitted"`
	Started   *string  `json:"started"`
	Ended     *string  `json:"ended"`
}

func toJSONSDKTask(t wire.SDKTask) jsonSDKTask {
	return jsonSDKTask{t.ID, cmp.Or(t.Name, "task"), uint32(t.Job), t.State, t.Attempt, string(t.Node), t.Worker, t.Parent,
		mapAll(t.WaitsFor, func(s string) string { return s }), t.Why, stamp(t.Submitted), stamp(t.Started), stamp(t.Ended)}
}
