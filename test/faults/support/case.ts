// The catalogue's cases as they are tried for real. Enters: number, words, a body that injects and asks the oracles. Leaves: a list.
export type FaultCase = {
  number: number
  title: string
  body: () => Promise<void>
  ms: number /** Why it cannot be tried here. */
  skip: string | undefined
}

const CASE_MS = 120_000
const list: FaultCase[] = []

/** `number`: the row of the catalogue (docs/OWNERSHIP.md). A row may have several cases. */
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
