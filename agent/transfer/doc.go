// Package transfer moves objects between nodes. A node pulls what it needs, once however
// many ask for it (single-flight), in ranges over several streams straight into the
// memory where the object will be, each range with its checksum. When a source fails, what
// is missing comes from another.
//
// Many readers of one object do not all read from its owner: whoever is asked while it
// gives the object to Fanout nodes already points a new reader to one of those, which
// serves it as soon as it has the object itself. So n readers are a tree, and no node
// sends the object more than a few times.
//
// Package agent supplies the two sides: Store (where objects are) and Dial (streams of
// kind wire.StreamObjects to other nodes).
package transfer
