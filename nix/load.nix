# Load a package set from a source that was described in JSON (the `fetch` of a Pin).
#
# source:     { type = "tarball"; url; } | { type = "git"; url; rev; ref?; } | { type = "path"; path; }
# revision:   what the source was resolved to, or null
# system:     the Nix system that the packages are for
# importArgs: more arguments for a package set that is a function
#
# Needs nothing of the package set.  The traces tell the caller how far it came, see nixery_core/nix/_load_errors.py.
{ source, revision ? null, system, importArgs ? { } }:
let
  reached = stage: builtins.trace "nixery-core: ${stage}";

  fetchers = {
    tarball = builtins.fetchTarball { inherit (source) url; };
    # A commit need not be on the default branch, so all refs are fetched where none is known.
    git = builtins.fetchGit ({ inherit (source) url rev; }
      // (if source ? ref then { inherit (source) ref; } else { allRefs = true; }));
    path =
      if builtins.pathExists source.path then source.path
      else throw "the package set ${source.path} does not exist";
  };
  fetched = fetchers.${source.type} or (throw "a package source of the type '${source.type}' is not known");

  # The archives of nixpkgs channels say which commit they were made of.
  stamp = "${fetched}/.git-revision";
  stamped = builtins.replaceStrings [ "\n" ] [ "" ] (builtins.readFile stamp);
  checked =
    if source.type == "tarball" && revision != null && builtins.pathExists stamp && stamped != revision
    then throw "the archive holds revision ${stamped}, but revision ${revision} was expected"
    else fetched;

  imported = import (reached "fetched" checked);

  # A function refuses arguments that it does not name, unless it names none.  What the source
  # gives always goes in: leaving it out in silence would build something else than was asked for.
  # `config` and `overlays` are given because nixpkgs would read them from the caller's home.
  accepted = builtins.functionArgs imported;
  defaults = { inherit system; config = { }; overlays = [ ]; };
  arguments =
    (if accepted == { } then { inherit system; } else builtins.intersectAttrs accepted defaults) // importArgs;

  packages =
    if builtins.isFunction imported then imported arguments
    else if importArgs != { } then throw "the package set is not a function, so it takes no import_args"
    else imported;
in
reached "started" (builtins.seq checked (
  if builtins.isAttrs packages then reached "loaded" packages
  else throw "the package set is a ${builtins.typeOf packages}, not a set of packages"))
