// Package names makes up names for containers: an adjective and the surname of a scientist, joined by an underscore.
package names

import (
	"math/rand/v2"
	"strconv"
)

// adjectives and surnames are sorted and have lower-case ASCII letters only; a test checks that.
var adjectives = []string{
	"agile", "amber", "ample", "apt", "ardent", "artful", "balmy", "blithe", "bold", "boundless", "brave", "breezy",
	"bright", "brisk", "calm", "candid", "careful", "cheery", "civil", "clear", "clever", "cosmic", "cosy", "crisp",
	"curious", "dapper", "daring", "deft", "devoted", "dreamy", "eager", "earnest", "elated", "fair", "fearless",
	"festive", "fleet", "fluent", "fond", "frank", "frosty", "gentle", "giddy", "glad", "golden", "graceful", "grand",
	"hardy", "hearty", "honest", "hopeful", "humble", "ideal", "inspired", "jaunty", "jolly", "jovial", "keen", "kind",
	"lively", "loyal", "lucid", "lucky", "lunar", "mellow", "merry", "mighty", "mindful", "mirthful", "modest", "neat",
	"nifty", "nimble", "noble", "patient", "peaceful", "placid", "playful", "plucky", "polite", "proud", "quaint",
	"quick", "quiet", "radiant", "ready", "resolute", "robust", "rustic", "sage", "serene", "sharp", "shiny", "silent",
	"sincere", "snug", "solar", "spirited", "spry", "stellar", "sturdy", "sunny", "swift", "tender", "thankful", "tidy",
	"tranquil", "trusty", "upbeat", "valiant", "vibrant", "vivid", "warm", "whimsical", "wise", "witty", "zany",
	"zealous", "zesty",
}

var surnames = []string{
	"abel", "agnesi", "aryabhata", "banach", "bardeen", "bassi", "bernoulli", "bhaskara", "boltzmann", "bose", "boyle",
	"brahmagupta", "burnell", "cannon", "cantor", "carson", "cauchy", "cavendish", "cori", "coulomb", "curie", "darwin",
	"dijkstra", "dirac", "easley", "einstein", "elion", "erdos", "euclid", "euler", "faraday", "fermi", "feynman",
	"fourier", "franklin", "galileo", "galois", "gauss", "germain", "goeppert", "goodall", "hamilton", "herschel",
	"hilbert", "hodgkin", "hopper", "hypatia", "jemison", "johnson", "joliot", "kepler", "khayyam", "kilby",
	"kovalevskaya", "lagrange", "lamarr", "laplace", "lavoisier", "leavitt", "leibniz", "liskov", "lovelace", "madhava",
	"maxwell", "mcclintock", "meitner", "mendel", "mendeleev", "mirzakhani", "montalcini", "napier", "newton",
	"noether", "ohm", "pascal", "pasteur", "pauli", "payne", "perlman", "planck", "poincare", "ptolemy", "raman",
	"ramanujan", "riemann", "ritchie", "rubin", "rutherford", "sagan", "shannon", "shirley", "somerville", "tereshkova",
	"tesla", "thompson", "torvalds", "turing", "varahamihira", "volta", "wiles", "wu", "yalow", "yonath", "zhang",
}

// New returns a random name. try counts the earlier attempts of a caller who found their names in use. From the fourth on
// a random number is appended, so that the caller's loop ends.
func New(try int) string {
	n := adjectives[rand.IntN(len(adjectives))] + "_" + surnames[rand.IntN(len(surnames))]
	if try > 3 {
		n += strconv.Itoa(rand.IntN(10 << min(try, 24)))
	}
	return n
}
