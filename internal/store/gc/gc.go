// Package gc is mark and sweep over any graph, as pure functions: it knows neither databases nor files.
package gc

// Mark gives every node that can be reached from the roots. Refs names what a node needs; it is asked
// once a node, and its first error ends the walk: a picture with holes must not be swept by.
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

// Sweep gives the nodes of all that are not live and that keep does not protect.
func Sweep[N comparable](all []N, live map[N]struct{}, keep func(N) bool) []N {
	var dead []N
	for _, n := range all {
		if _, ok := live[n]; !ok && !keep(n) {
			dead = append(dead, n)
		}
	}
	return dead
}
