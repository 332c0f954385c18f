package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"
)

// maxMethods is how many methods a type may have. A larger one does several things: split it by what its callers need.
const maxMethods = 40

func TestNoTypeHasTooManyMethods(t *testing.T) {
	count := map[string]int{}
	for _, p := range list(t, "./internal/...", "./cmd/...") {
		for _, f := range append(p.GoFiles, p.CgoFiles...) {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range file.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv != nil {
					count[p.ImportPath+"."+receiver(fn.Recv.List[0].Type)]++
				}
			}
		}
	}
	for name, n := range count {
		if n > maxMethods {
			t.Errorf("%s has %d methods", name, n)
		}
	}
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}
