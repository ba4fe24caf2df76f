// Whether to send a VM's memory ahead to where its user is going. Enters: a VM and the predictor. Leaves: a wish to
// pre-stage, or undefined. P(user at s after the cold transfer time) >= the probability asked for, s would then be
// better than here by more than H, the copy would be of use (feasible), the VM's byte allowance and both sites' staging
// tokens suffice.
import type { NextSitePredictor } from './next-site.ts'
import { POLICY_NAMES } from './settings.ts'
import type { Tables } from './view.ts'

const REGRET = POLICY_NAMES.indexOf('regret')

export type PrepareWish = { index: number; from: number; to: number; bytes: number; probability: number; tauMs: number; userSite: number }

export function wantsPrepare(tables: Tables, predictor: NextSitePredictor, index: number, nowMs: number): PrepareWish | undefined {
  const { settings, sites, vms } = tables
  const c = vms.columns
  const from = c.site[index]!
  const userSite = c.userSite[index]!
  if (from < 0 || userSite < 0 || c.movingTo[index]! >= 0 || c.stagingTo[index]! >= 0 || c.isPinned[index] === 1) return undefined
  if (c.policy[index] !== REGRET || nowMs - c.seenMs[index]! > settings.staleMs) return undefined
  const memoryBytes = c.memoryBytes[index]!
  const tauMs = (memoryBytes / sites.slowestFrom(from)) * 1000
  if (tauMs < settings.prestage.worthMs || !predictor.predict(index, nowMs, tauMs)) return undefined
  const { site: then, probability } = predictor
  if (probability < settings.prestage.probability || then < 0) return undefined
  const to = tables.unfit.best(sites, index, then, nowMs)
  if (to < 0 || to === from) return undefined
  const isReturn = c.previousSite[index] === to && nowMs - c.previousLeftMs[index]! < settings.regret.returnWithinMs
  if (isReturn) return undefined
  const gainMs = sites.rtt(then, from) - sites.rtt(then, to)
  if (!(gainMs > c.hysteresisMs[index]!)) return undefined
  if (c.dirtyBytesPerSecond[index]! / sites.bandwidth(from, to) >= settings.cost.feasibleRatio) return undefined
  const isStaged = c.stagedSite[index] === to && nowMs - c.stagedMs[index]! < settings.prestage.keepMs
  if (isStaged || !sites.canStage(from, to) || allowance(tables, index, nowMs) < memoryBytes) return undefined
  return { index, from, to, bytes: memoryBytes, probability, tauMs, userSite: then }
}

/** Takes a pre-staging's bytes out of the VM's allowance. */
export function spend(tables: Tables, index: number, bytes: number, nowMs: number): void {
  tables.vms.columns.allowanceBytes[index] = allowance(tables, index, nowMs) - bytes
  tables.vms.columns.allowanceMs[index] = nowMs
}

/** What asking and sending ahead have really taken, once that is known: the rest is given back. */
export function settle(tables: Tables, index: number, sentBytes: number, nowMs: number): void {
  const { vms, settings } = tables
  const back = Math.max(0, vms.columns.memoryBytes[index]! - sentBytes)
  vms.columns.allowanceBytes[index] = Math.min(settings.prestage.budgetBytesPerHour, allowance(tables, index, nowMs) + back)
  vms.columns.allowanceMs[index] = nowMs
}

/** Bytes that may still be sent ahead: fills up at the budget's rate, never beyond an hour's worth. */
function allowance({ settings, vms }: Tables, index: number, nowMs: number): number {
  const { budgetBytesPerHour } = settings.prestage
  const earned = ((nowMs - vms.columns.allowanceMs[index]!) / 3_600_000) * budgetBytesPerHour
  return Math.min(budgetBytesPerHour, vms.columns.allowanceBytes[index]! + earned)
}
