// On RQ's lists of jobs, makes the checkbox in the table's head select all rows.  Django's own script
// for this needs elements that those pages don't have.
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
