// A queue between those who bring and those who wait: inbound connections, inbound streams.
// Enters: items, then perhaps an end. Leaves: each item once, in order; null for ever after the end.
// Always holds: never more than `limit` items wait; what does not fit is refused (push gives false) and its bringer disposes of it.

export type Inbox<T> = {
  /** False: the inbox is full or has ended, and the item was not taken. */
  push(item: T): boolean
  next(): Promise<T | null>
  /** No more items; those that wait are given back for disposal. */
  end(): T[]
}

export function createInbox<T>(limit: number): Inbox<T> {
  const items: T[] = []
  const waiting: ((item: T | null) => void)[] = []
  let ended = false
  return {
    push(item) {
      if (ended) return false
      const taker = waiting.shift()
      if (taker) {
        taker(item)
        return true
      }
      if (items.length >= limit) return false
      items.push(item)
      return true
    },
    next() {
      const item = items.shift()
      if (item !== undefined) return Promise.resolve(item)
      if (ended) return Promise.resolve(null)
      return new Promise(resolve => waiting.push(resolve))
    },
    end() {
      ended = true
      for (const taker of waiting.splice(0)) taker(null)
      return items.splice(0)
    },
  }
}
