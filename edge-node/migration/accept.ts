// Whether this site takes a VM from that one: the target's own rules. Encryption does not protect a target from a
// compromised source; this narrows what such a source can bring. Pure. Always holds: with rules, what no rule names is
// refused; names come from the verified certificate and the plan.
import { GodwitError } from '../../wire/errors.ts'

type AcceptRule = { from: string[]; vms: string[] }

/** `*` stands for any characters; nothing else is special. */
export function fits(pattern: string, name: string): boolean {
  const parts = pattern.split('*')
  if (parts.length === 1) return pattern === name
  const first = parts[0]!
  const last = parts.at(-1)!
  if (!name.startsWith(first) || !name.endsWith(last) || name.length < first.length + last.length) return false
  let at = first.length
  for (const part of parts.slice(1, -1)) {
    const found = name.indexOf(part, at)
    if (found < 0 || found + part.length > name.length - last.length) return false
    at = found + part.length
  }
  return true
}

/** Throws MIGRATION_DENIED when there are rules and none fits. */
export function checkAccept(rules: AcceptRule[] | undefined, { source, vm, target }: { source: string; vm: string; target: string }): void {
  if (rules === undefined) return
  const isWelcome = rules.some(({ from, vms }) => from.some(name => fits(name, source)) && vms.some(name => fits(name, vm)))
  if (!isWelcome) throw new GodwitError('MIGRATION_DENIED', `${target} does not accept ${vm} from ${source}`)
}

/** An image may come from a site of which some VM may come. MIGRATION_DENIED. */
export function checkAcceptImage(rules: AcceptRule[] | undefined, { source, target }: { source: string; target: string }): void {
  if (rules === undefined || rules.some(({ from }) => from.some(name => fits(name, source)))) return
  throw new GodwitError('MIGRATION_DENIED', `${target} does not accept images from ${source}`)
}
