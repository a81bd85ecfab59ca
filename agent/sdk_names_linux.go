package agent

import (
	"context"
	"maps"
	"slices"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// Names of the actors that this node owns. The head has them all; what is here is told to it
// again whenever there is a new session with it.

// nameActor takes a name for an actor that a client is about to make.
func (s *sdkServer) nameActor(ctx context.Context, cl *sdkClient, args []any) (any, error) {
	if len(args) < 4 {
		return nil, errs.New(errs.Corrupt, "name_actor takes a namespace, a name, an id and bytes")
	}
	n := wire.ActorName{Namespace: textOf(args[0]), Name: textOf(args[1]), Meta: []byte(textOf(args[3]))}
	if copy(n.Actor[:], textOf(args[2])) != len(n.Actor) || n.Actor.Node() != s.number || n.Actor.Client() != cl.ID {
		return nil, errs.New(errs.Permission, "client %d names actor %s, which is not its to make", cl.ID, n.Actor)
	}
	s.a.mu.Lock()
	s.names[n.Actor] = n
	s.a.mu.Unlock()
	has, err := askHead[[]wire.ActorName](ctx, s.a.head, wire.MsgName, wire.NameRequest{What: wire.NameTake, Names: []wire.ActorName{n}})
	if err != nil || len(has) != 1 || has[0].Actor != n.Actor {
		s.a.mu.Lock()
		delete(s.names, n.Actor)
		s.a.mu.Unlock()
	}
	switch {
	case err != nil:
		return nil, err
	case len(has) != 1:
		return nil, errs.New(errs.Internal, "the head did not say who has the name %q", n.Name)
	case has[0].Actor == n.Actor:
		return nil, nil
	}
	return []any{has[0].Actor[:], has[0].Meta}, nil
}

// unnameActor frees the name that a client took for an actor which it cannot make.
func (s *sdkServer) unnameActor(ctx context.Context, cl *sdkClient, args []any) (any, error) {
	var id wire.ObjectID
	if len(args) < 1 || copy(id[:], textOf(args[0])) != len(id) || id.Node() != s.number || id.Client() != cl.ID {
		return nil, errs.New(errs.Permission, "client %d frees the name of an actor that is not its to make", cl.ID)
	}
	s.a.mu.Lock()
	n, ok := s.names[id]
	if ok = ok && !s.core.HasActor(id); ok {
		delete(s.names, id)
	}
	s.a.mu.Unlock()
	if !ok {
		return nil, nil
	}
	_, err := askHead[[]wire.ActorName](ctx, s.a.head, wire.MsgName, wire.NameRequest{What: wire.NameDrop, Names: []wire.ActorName{n}})
	return nil, err
}

// findActor finds the actor of a name.
func (s *sdkServer) findActor(ctx context.Context, args []any) (any, error) {
	if len(args) < 2 {
		return nil, errs.New(errs.Corrupt, "find_actor takes a namespace and a name")
	}
	has, err := askHead[[]wire.ActorName](ctx, s.a.head, wire.MsgName, wire.NameRequest{What: wire.NameFind, Names: []wire.ActorName{{Namespace: textOf(args[0]), Name: textOf(args[1])}}})
	if err != nil || len(has) != 1 {
		return nil, err
	}
	return []any{has[0].Actor[:], has[0].Meta}, nil
}

// namedActors lists names.
func (s *sdkServer) namedActors(ctx context.Context, args []any) (any, error) {
	space := ""
	if len(args) > 0 {
		space = textOf(args[0])
	}
	has, err := askHead[[]wire.ActorName](ctx, s.a.head, wire.MsgName, wire.NameRequest{What: wire.NameList, Namespace: space})
	if err != nil {
		return nil, err
	}
	out := [][2]string{}
	for i := range has {
		out = append(out, [2]string{has[i].Namespace, has[i].Name})
	}
	return out, nil
}

// actorOver frees the name of an actor that is dead. a.mu is held.
func (s *sdkServer) actorOver(id wire.ObjectID) {
	n, ok := s.names[id]
	if !ok {
		return
	}
	delete(s.names, id)
	s.wg.Go(func() { // if the head does not hear it now, it does with the next session
		_, _ = askHead[[]wire.ActorName](s.ctx, s.a.head, wire.MsgName, wire.NameRequest{What: wire.NameDrop, Names: []wire.ActorName{n}})
	})
}

// unmade frees the names that a client took for actors which it did not make. a.mu is held.
func (s *sdkServer) unmade(client uint32) {
	for id := range s.names {
		if id.Client() == client && !s.core.HasActor(id) {
			s.actorOver(id)
		}
	}
}

// tellNames tells the head all names of this node, when a session with it is new. a.mu is
// held.
func (s *sdkServer) tellNames() {
	there := s.a.core.Welcomed()
	if there == s.told {
		return
	}
	if s.told = there; !there || len(s.names) == 0 {
		return
	}
	mine := slices.Collect(maps.Values(s.names))
	s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, queryWait)
		defer cancel()
		if _, err := askHead[[]wire.ActorName](ctx, s.a.head, wire.MsgName, wire.NameRequest{What: wire.NameMine, Names: mine, Number: s.number}); err != nil {
			s.a.log.Warn("the head has not heard the names of actors", "err", err)
			time.AfterFunc(time.Second, func() { // once more
				s.a.mu.Lock()
				s.told = false
				s.a.mu.Unlock()
			})
		}
	})
}

func textOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	}
	return ""
}
