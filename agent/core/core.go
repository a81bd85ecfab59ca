package core

// Core is the reactor. It is not safe for concurrent use.
type Core struct {
	cfg Config
	s   *State
	out Output
}

// New makes a reactor of a state; an empty one is NewState().
func New(cfg Config, s *State) *Core { return &Core{cfg: cfg, s: s} }

// State is what the records so far amount to. It must not be changed.
func (c *Core) State() *State { return c.s }

// Due is when the core wants its next Tick at the latest; 0 = it need not be ticked.
func (c *Core) Due() int64 { return 0 }
