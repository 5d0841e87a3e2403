// The box in the head of RQ's lists of jobs ticks all boxes below it.  Django's own script for it
// needs more around it than those pages have.
'use strict';
document.addEventListener('DOMContentLoaded', () => {
    const all = document.getElementById('action-toggle');
    const boxes = [...document.querySelectorAll('input.action-select')];
    if (!all) {
        return;
    }
    all.addEventListener('change', () => boxes.forEach((box) => {
        box.checked = all.checked;
    }));
    boxes.forEach((box) => box.addEventListener('change', () => {
        all.checked = boxes.every((each) => each.checked);
    }));
});
