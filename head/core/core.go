package core

import "launcher/wire"

// Core is the head's reactor. It is owned by one goroutine.
type Core struct {
	cfg Config
	d   *Durable
}

// New makes the reactor of a head that has replayed its journal into d. The first event
// must be Start.
func New(cfg Config, d *Durable) *Core { return &Core{cfg: cfg, d: d} }

// Step takes one event. now is unix nanoseconds and never goes backwards.
func (c *Core) Step(now int64, ev Event) Output { return Output{} }

// Durable is what the records so far amount to; it must not be changed, and is only
// valid until the next Step (encode it for a snapshot).
func (c *Core) Durable() *Durable { return c.d }

// Wake is when the core wants its next Tick, in unix nanoseconds; 0 = no need of one.
func (c *Core) Wake() int64 { return 0 }

// Epoch is the head's, valid after Start.
func (c *Core) Epoch() wire.Epoch { return 0 }

// Admit says whether a node may join: its name, epoch and token are of a submission
// that has not ended.
func (c *Core) Admit(node wire.NodeID, epoch wire.Epoch, token string) error { return nil }

// Job gives a job's info, as in answers to clients.
func (c *Core) Job(id wire.JobID) (wire.JobInfo, bool) { return wire.JobInfo{}, false }

// Table gives the table of a job's trials; false when it has none.
func (c *Core) Table(id wire.JobID) (wire.TrialTable, bool) { return wire.TrialTable{}, false }
