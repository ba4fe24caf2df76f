// How much a stated probability is worth. Enters: predictions with their probability, and whether they came true.
// Leaves: the probability as experience corrects it, and the score. Pure. One bin for each twentieth; each starts as if
// it had been right to its own figure.

const BINS = 20
/** A bin's own figure counts for this many observations. */
const PRIOR = 20

export type Score = {
  predictions: number
  hits: number
  /** Share of predictions that came true. */
  hitRate: number
  /** Mean of (probability - came true)^2 for the predicted site: 0 is perfect, 0.25 a coin. */
  brier: number
  /** The same for a forecaster who knows only how often predictions come true. */
  brierOfRate: number
  /** Of these, predictions that the user would be at another site than now. */
  changes: { predictions: number; hits: number; hitRate: number; brier: number }
  /** Stated against observed, for bins with anything in them. */
  bins: { stated: number; observed: number; predictions: number }[]
}

export class Calibration {
  readonly #right = new Float64Array(BINS)
  readonly #seen = new Float64Array(BINS)
  readonly #stated = new Float64Array(BINS)
  readonly #statedRight = new Float64Array(BINS)
  readonly #statedSeen = new Float64Array(BINS)
  readonly #totals = { predictions: 0, hits: 0, square: 0, changes: 0, changeHits: 0, changeSquare: 0 }

  /** What `raw` has been worth so far. */
  correct(raw: number): number {
    const bin = binOf(raw)
    return (this.#right[bin]! + PRIOR * raw) / (this.#seen[bin]! + PRIOR)
  }

  /** `raw`: before correction; `stated`: what correct() gave when it was made. */
  learn(raw: number, stated: number, isHit: boolean, isChange: boolean): void {
    const hit = isHit ? 1 : 0
    this.#right[binOf(raw)]! += hit
    this.#seen[binOf(raw)]!++
    const bin = binOf(stated)
    this.#stated[bin]! += stated
    this.#statedRight[bin]! += hit
    this.#statedSeen[bin]!++
    const totals = this.#totals
    totals.predictions++
    totals.hits += hit
    totals.square += (stated - hit) ** 2
    if (!isChange) return
    totals.changes++
    totals.changeHits += hit
    totals.changeSquare += (stated - hit) ** 2
  }

  score(): Score {
    const { predictions, hits, square, changes, changeHits, changeSquare } = this.#totals
    const hitRate = hits / Math.max(1, predictions)
    return {
      predictions,
      hits,
      hitRate,
      brier: square / Math.max(1, predictions),
      brierOfRate: hitRate * (1 - hitRate),
      changes: {
        predictions: changes,
        hits: changeHits,
        hitRate: changeHits / Math.max(1, changes),
        brier: changeSquare / Math.max(1, changes),
      },
      bins: [...this.#statedSeen.keys()].flatMap(bin => {
        const seen = this.#statedSeen[bin]!
        return seen === 0 ? [] : [{ stated: this.#stated[bin]! / seen, observed: this.#statedRight[bin]! / seen, predictions: seen }]
      }),
    }
  }
}

const binOf = (probability: number): number => Math.min(BINS - 1, Math.max(0, Math.floor(probability * BINS)))
