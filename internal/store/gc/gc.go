// Package gc has the two steps of a collection, mark and sweep, as pure functions on a graph. It uses neither databases nor files.
package gc

// Mark returns every node that can be reached from the roots. refs returns the nodes that a node needs; Mark calls it once per node. When
// refs fails, Mark returns no nodes: a sweep with an incomplete result would remove nodes that are needed.
func Mark[N comparable](roots []N, refs func(N) ([]N, error)) (map[N]struct{}, error) {
	live := make(map[N]struct{}, len(roots))
	todo := append([]N(nil), roots...)
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if _, ok := live[n]; ok {
			continue
		}
		live[n] = struct{}{}
		next, err := refs(n)
		if err != nil {
			return nil, err
		}
		todo = append(todo, next...)
	}
	return live, nil
}

// Sweep returns the nodes of all that are not live and for which keep returns false.
func Sweep[N comparable](all []N, live map[N]struct{}, keep func(N) bool) []N {
	var dead []N
	for _, n := range all {
		if _, ok := live[n]; !ok && !keep(n) {
			dead = append(dead, n)
		}
	}
	return dead
}
