// The catalogue's cases as they are tried for real. Enters: number, words, a body that injects and asks the oracles.
// Leaves: a list.
type FaultCase = {
  number: number
  title: string
  body: () => Promise<void>
  ms: number /** Why it cannot be tried here. */
  skip: string | undefined
}

const CASE_MS = 180_000
const list: FaultCase[] = []

/** `number`: the row of the catalogue (docs/internals/ownership.md). A row may have several cases. */
export function faultCase(
  number: number,
  title: string,
  body: () => Promise<void>,
  { ms = CASE_MS, skip }: { ms?: number; skip?: string | undefined } = {},
): void {
  list.push({ number, title: `#${number} ${title}`, body, ms, skip })
}

/** In the order of the catalogue. */
export const allCases = (): FaultCase[] => [...list].sort((a, b) => a.number - b.number)
