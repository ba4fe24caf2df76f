// Mutates JSON inputs: values, keys and whole branches rather than bytes. Pure. Enters: JSON text. Leaves: other JSON
// text, nearly always well formed.
import type { Random } from '../sim-network/random.ts'
import { below, pick } from './mutate.ts'

type Branch = { holder: Record<string, unknown> | unknown[]; key: string | number }

const VALUES: readonly unknown[] = [
  null,
  true,
  false,
  0,
  -0,
  -1,
  1,
  0.5,
  2 ** 31,
  2 ** 53 - 1,
  2 ** 53,
  -(2 ** 53),
  1e308,
  '',
  'x',
  [],
  {},
].concat(['a'.repeat(65), 'A'.repeat(300), '0'.repeat(32), 'f'.repeat(64), '__proto__', '\u0000', '\ud800', '../../x', 'é', '\u202e'])
const KEYS = ['__proto__', 'constructor', 'toString', 'type', 'id', '', 'length', 'x'.repeat(70)]
const DEPTH_MAX = 400

/** The text with one to a few changed values; undefined if it is not a JSON object or array. */
export function mutateJson(text: string, random: Random, others: readonly string[]): string | undefined {
  const value = parse(text)
  if (typeof value !== 'object' || value === null) return undefined
  const root = { value }
  for (let left = 1 + below(random, 3); left > 0; left--) {
    const branches = branchesOf(root)
    alter(pick(random, branches)!, random, parse(pick(random, others) ?? ''))
  }
  const out = JSON.stringify(root.value) ?? 'null'
  // Texts that JSON.stringify never writes: a key of this name, a duplicate key, numbers beyond a double.
  if (random.chance(0.05)) return out.replace(/"x+"|"id"|"type"/, '"__proto__"')
  if (random.chance(0.03)) return out.replace(/:(\d+)/, ':1e999')
  if (random.chance(0.03)) return out.replace(/^\{("[^"]*"):/, '{$1:0,$1:')
  return out
}

function alter({ holder, key }: Branch, random: Random, other: unknown): void {
  const slots = holder as Record<string | number, unknown>
  const before = slots[key]
  const choice = below(random, 8)
  if (choice === 0) remove(holder, key)
  else if (choice === 1 && !Array.isArray(holder)) slots[pick(random, KEYS)!] = before
  else if (choice === 2 && Array.isArray(before)) before.push(...before.slice(0, 1 + below(random, 4)))
  else if (choice === 3 && typeof before === 'number') slots[key] = before + (below(random, 5) - 2)
  else if (choice === 4 && typeof before === 'string') slots[key] = cutOrGrow(before, random)
  else if (choice === 5 && random.chance(0.2)) slots[key] = nested(below(random, DEPTH_MAX), before)
  else if (choice === 6) slots[key] = branchValue(other, random)
  else slots[key] = pick(random, VALUES)
}

function cutOrGrow(text: string, random: Random): string {
  const at = below(random, text.length + 1)
  if (random.chance(0.3)) return text.slice(0, at)
  return `${text.slice(0, at)}${random.chance(0.5) ? String.fromCharCode(below(random, 0x250)) : text.slice(0, 40)}${text.slice(at)}`
}

function nested(depth: number, inner: unknown): unknown {
  let value = inner
  for (let i = 0; i < depth; i++) value = i % 2 === 0 ? [value] : { x: value }
  return value
}

function branchValue(other: unknown, random: Random): unknown {
  const branch = pick(random, branchesOf({ value: other }))!
  return (branch.holder as Record<string | number, unknown>)[branch.key]
}

const remove = (holder: Branch['holder'], key: string | number): void => {
  if (Array.isArray(holder)) holder.splice(Number(key), 1)
  else delete holder[key]
}

function branchesOf(root: { value: unknown }): Branch[] {
  const found: Branch[] = []
  const visit = (holder: Branch['holder'], key: string | number, depth: number) => {
    found.push({ holder, key })
    const value = (holder as Record<string | number, unknown>)[key]
    if (typeof value !== 'object' || value === null || depth > 20 || found.length > 500) return
    for (const name of Object.keys(value)) visit(value as Branch['holder'], Array.isArray(value) ? Number(name) : name, depth + 1)
  }
  visit(root as unknown as Record<string, unknown>, 'value', 0)
  return found
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
