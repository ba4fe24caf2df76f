// Encodes one direction of a link for the native driver: words that native/link-driver.c reads. Pure. Enters: options
// and a seed as for createLink. Leaves: one line. Always holds: strtod returns the same double for each number; the
// seed is hashed here, so both implementations draw the same random numbers.
import type { LinkModelOptions } from './link.ts'
import { createLink } from './link.ts'
import type { Loss } from './loss.ts'
import { createRandom, hash32 } from './random.ts'
import type { Rate } from './server.ts'

/** TypeError for invalid options. */
export function linkWords(options: LinkModelOptions, seed: number | string): string {
  createLink(options, seed)
  const { rate, delayMs, jitterMs = 0, jitterPeriodMs = 4 * jitterMs, loss, queueBytes, blackouts = [], mtuBytes = 0 } = options
  const words = ['rate', ...rateWords(rate), 'delay', delayMs, 'jitter', jitterMs, jitterPeriodMs, 'loss', ...lossWords(loss)]
  words.push('queue', queueBytes, 'mtu', mtuBytes)
  for (const { startMs, durationMs, everyMs = 0, mode = 'hold' } of blackouts)
    words.push('blackout', startMs, durationMs, everyMs, mode === 'drop' ? 1 : 0)
  words.push('random', ...randomWords(seed), 'end')
  return `${words.join(' ')}\n`
}

function rateWords(rate: Rate): (string | number)[] {
  if ('trace' in rate) return ['trace', rate.trace.opportunitiesMs.length, ...rate.trace.opportunitiesMs]
  if ('bitsPerSecond' in rate) return ['steps', 0, 1, 0, rate.bitsPerSecond]
  return ['steps', rate.repeatMs ?? 0, rate.steps.length, ...rate.steps.flatMap(({ atMs, bitsPerSecond }) => [atMs, bitsPerSecond])]
}

function lossWords(loss: Loss | undefined): (string | number)[] {
  if (!loss) return ['none']
  if ('ratio' in loss) return ['ratio', loss.ratio]
  const { goodToBad, badToGood, lossGood = 0, lossBad = 1 } = loss.burst
  return ['burst', goodToBad, badToGood, lossGood, lossBad]
}

/** The loss's sfc32 state before its first 16 rounds (random.ts), and the jitter's seed. */
function randomWords(seed: number | string): number[] {
  const loss = `${seed}/loss`
  return [hash32(loss, 0x811c9dc5), hash32(loss, 0x9e3779b9), hash32(loss, 0x85ebca6b), createRandom(seed).fork('jitter').uint32()]
}
