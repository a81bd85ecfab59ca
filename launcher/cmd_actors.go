package main

import (
	"cmp"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"launcher/wire"
)

const actorsLong = `List the actors of programs: where they live and what they wait for.

  STATE      pending     it does not live yet
             alive
             restarting  its process or node is gone; it begins again
             dead        there is a handle of it still

LIVES counts how often it has begun. Programs find those with a name by get_actor.`

func (a *app) cmdActors() *cobra.Command {
	var job uint32
	c := &cobra.Command{
		Use:   "actors",
		Short: "actors of programs, and where they live",
		Long:  actorsLong,
		Args:  argCount(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			by, lost, err := ask[[]wire.SDKActor](c.Context(), a, wire.QueryActors, "", struct{}{})
			if err != nil {
				return err
			}
			list := mergeActors(by, wire.JobID(job))
			if a.json {
				a.printJSON(doc{"actors": mapAll(list, toJSONActor), "unreached": mapAll(lost, func(u unreached) unreached { return u })})
				return nil
			}
			rows := [][]string{{"ACTOR", "CLASS", "NAME", "STATE", "NODE", "WORKER", "LIVES", "WHY"}}
			for _, x := range list {
				name, pid := x.Name, ""
				if x.Detached {
					name += " (detached)"
				}
				if x.Worker != 0 {
					pid = strconv.Itoa(x.Worker)
				}
				rows = append(rows, []string{x.ID, cut(x.Class, 32), name, x.State, string(x.node), pid, strconv.FormatUint(uint64(x.Lives), 10), cut(x.Why, 80)})
			}
			if len(rows) > 1 {
				a.table(rows)
			}
			a.noteUnreached(lost)
			return nil
		},
	}
	c.Flags().Uint32Var(&job, "job", 0, "only those of this job")
	return c
}

// placedActor is an actor with the node where it lives.
type placedActor struct {
	wire.SDKActor
	node wire.NodeID
}

// mergeActors puts together what owners and hosts say.
func mergeActors(by map[wire.NodeID][]wire.SDKActor, job wire.JobID) []placedActor {
	at := map[string]placedActor{}
	for node, list := range by {
		for _, x := range list {
			if x.Worker != 0 {
				at[x.ID] = placedActor{x, node}
			}
		}
	}
	var out []placedActor
	for _, node := range slices.Sorted(maps.Keys(by)) {
		for _, x := range by[node] {
			if x.Hosted || job != 0 && x.Job != job {
				continue
			}
			p := placedActor{SDKActor: x}
			if h, ok := at[x.ID]; ok {
				p.node, p.Worker = h.node, h.Worker
			}
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b placedActor) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

type jsonActor struct {
	ID        string      `json:"id"`
	Job       uint32      `json:"job"`
	Class     string      `json:"class"`
	Namespace string      `json:"namespace"`
	Name      string      `json:"name"`
	State     string      `json:"state"`
	Node      wire.NodeID `json:"node"`
	Worker    int         `json:"worker"` // pid
	Lives     uint32      `json:"lives"`
	Detached  bool        `json:"detached"`
	Why       string      `json:"why"`
}

func toJSONActor(x placedActor) jsonActor {
	return jsonActor{x.ID, uint32(x.Job), x.Class, x.Namespace, x.Name, x.State, x.node, x.Worker, x.Lives, x.Detached, x.Why}
}
