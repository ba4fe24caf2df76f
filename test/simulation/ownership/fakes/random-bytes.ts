// node:crypto for production in the simulation: random numbers that the seed decides.
import * as crypto from 'node:crypto'
import { stage } from '../stage.ts'

export const randomBytes = (count: number): Buffer => Buffer.from(Array.from({ length: count }, () => stage().random.uint32() & 0xff))
export const { createHash, timingSafeEqual } = crypto
